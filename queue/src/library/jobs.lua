-- Jobs. The record of a job is a hash:
--   st state (queued stands for running too: the lane's group knows)   h its lane by priority
--   l lane, when it is not h, and s entry where it waits or runs, or did   a attempts before, if any
--   m most attempts   t submitted, when that is not the time in s
--   j payload (while it is in no lane)   o outcome   f last failure   b begun   e ended
--   c cancel asked for   ls, lo the entry and owner that last ended its attempt itself   us, un last write

-- Enqueues a job that is not known yet. j: id, lane (name), max, payload.
local function submit_one(job, lane, j)
  local entry = enqueue(lane, j.id, 0, j.payload)
  redis.call('HSET', job, 'st', 'queued', 'h', j.lane, 's', entry, 'm', j.max)
end

-- The job leaves its first entry: when that was made is when it was submitted.
local function keep_time(job, entry)
  redis.call('HSETNX', job, 't', string.match(entry, '^%d+'))
end

-- KEYS: queues, then L lanes, then a record per job
-- ARGV: L, the lanes' names, then per job: id, place of its lane, max attempts, payload
local function submit(KEYS, ARGV)
  local lanes = tonumber(ARGV[1])
  local place = {}
  for i = 1, lanes do
    place[ARGV[1 + i]] = KEYS[1 + i]
    if redis.call('EXISTS', KEYS[1 + i]) == 0 then
      make_lane(KEYS[1 + i])
      redis.call('SADD', KEYS[1], string.match(ARGV[1 + i], '^(.*):'))
    end
  end
  local reply = {}
  local a = 2 + lanes
  for k = 2 + lanes, #KEYS do
    local id, home, max, payload = ARGV[a], tonumber(ARGV[a+1]), ARGV[a+2], ARGV[a+3]
    a = a + 4
    local r = redis.call('HMGET', KEYS[k], 'st', 'l', 's', 'h')
    if r[1] then
      local lane = r[1] == 'queued' and place[r[2] or r[4]]
      local pending = lane and redis.call('XPENDING', lane, GROUP, r[3], r[3], 1) or {}
      reply[#reply + 1] = #pending > 0 and 'running' or r[1]
    else
      submit_one(KEYS[k], KEYS[1 + home],
        { id = id, lane = ARGV[1 + home], max = max, payload = payload })
      reply[#reply + 1] = 'new'
    end
  end
  return reply
end

-- KEYS: lanes in the order in which they are served.  ARGV: consumer, how many
local function claim(KEYS, ARGV)
  local left = tonumber(ARGV[2])
  local reply = {}
  for _, lane in ipairs(KEYS) do
    if left == 0 then break end
    local got = redis.call('XREADGROUP', 'GROUP', GROUP, ARGV[1], 'COUNT', left, 'STREAMS', lane, '>')
    if got then
      reply[#reply + 1] = got[1]
      left = left - #got[1][2]
    end
  end
  return reply
end

-- k: job, lane, delayed, done, counters, control. lane_name: where the caller saw it.
local function cancel_one(k, id, lane_name, member, outcome)
  local r = redis.call('HMGET', k.job, 'st', 'l', 's', 'h', 'a', 'j', 'c')
  local state, lane, before = r[1], r[2] or r[4], r[5] or 0
  if not state then return 'unknown' end
  if ended(state) then return state end
  local queue = string.match(r[4], '^(.*):')
  if state == 'delayed' then
    redis.call('ZREM', k.delayed, member)
    redis.call('HINCRBY', k.counters, queue .. ' delayed', -1)
    conclude(k, id, queue, 'cancelled', outcome, before, r[6])
    return 'cancelled'
  end
  if lane ~= lane_name then return 'moved' end
  local p = redis.call('XPENDING', k.lane, GROUP, r[3], r[3], 1)
  if #p > 0 then
    if not r[7] then
      redis.call('HSET', k.job, 'c', 1)
      redis.call('XADD', k.control, 'MAXLEN', '~', CONTROL_KEPT, '*', 'k', 'cancel', 'w', p[1][2],
        'l', lane, 's', r[3])
    end
    return 'running'
  end
  local e = read_entry(k.lane, r[3])
  redis.call('XDEL', k.lane, r[3])
  conclude(k, id, queue, 'cancelled', outcome, before, e and e.payload or '')
  return 'cancelled'
end

-- KEYS: record, lane, delayed, done, counters, control
-- ARGV: id, name of the lane, member of the delayed, outcome
local function cancel(KEYS, ARGV)
  local k = { job = KEYS[1], lane = KEYS[2], delayed = KEYS[3], done = KEYS[4], counters = KEYS[5], control = KEYS[6] }
  return cancel_one(k, ARGV[1], ARGV[2], ARGV[3], ARGV[4])
end

-- Gives leases back: `died` counts the attempt, `released` does not.
-- KEYS: done, counters, then per lease: record, its lane, the lane of those to do again, dead letters
-- ARGV: died|released, owner, outcome of the cancelled, outcome of the quarantined,
--       then per lease: entry, id, queue, name of the lane of those to do again
local function give_back(KEYS, ARGV)
  local died, owner = ARGV[1] == 'died', ARGV[2]
  local given = 0
  local a = 5
  for k = 3, #KEYS, 4 do
    local job, lane, again, dead = KEYS[k], KEYS[k+1], KEYS[k+2], KEYS[k+3]
    local entry, id, queue, again_name = ARGV[a], ARGV[a+1], ARGV[a+2], ARGV[a+3]
    a = a + 4
    local l = read_lease(lane, entry, owner)
    if l then
      local r = redis.call('HMGET', job, 'm', 'c')
      local attempts = died and l.attempt or l.before
      local keys = { job = job, done = KEYS[1], counters = KEYS[2] }
      drop_entry(lane, entry)
      given = given + 1
      if r[2] then
        conclude(keys, id, queue, 'cancelled', ARGV[3], l.attempt, l.payload, l)
      elseif died and r[1] and attempts >= tonumber(r[1]) then
        keys.dead = dead
        conclude(keys, id, queue, 'quarantined', ARGV[4], attempts, l.payload, l)
      elseif r[1] then
        make_lane(again)
        local new = enqueue(again, id, attempts, l.payload)
        keep_time(job, entry)
        redis.call('HSET', job, 's', new, 'l', again_name, 'a', attempts)
      end
    end
  end
  return given
end

-- KEYS: delayed, counters, then per job: record, its lane
-- ARGV: per job: member, id, queue, name of the lane
local function promote(KEYS, ARGV)
  local at = now()
  local promoted = 0
  local a = 1
  for k = 3, #KEYS, 2 do
    local member, id, queue, lane_name = ARGV[a], ARGV[a+1], ARGV[a+2], ARGV[a+3]
    a = a + 4
    local score = redis.call('ZSCORE', KEYS[1], member)
    if score and tonumber(score) <= at then
      redis.call('ZREM', KEYS[1], member)
      redis.call('HINCRBY', KEYS[2], queue .. ' delayed', -1)
      local r = redis.call('HMGET', KEYS[k], 'st', 'a', 'j')
      if r[1] == 'delayed' then
        make_lane(KEYS[k+1])
        local entry = enqueue(KEYS[k+1], id, r[2], r[3])
        redis.call('HSET', KEYS[k], 'st', 'queued', 's', entry, 'l', lane_name)
        redis.call('HDEL', KEYS[k], 'j')
        promoted = promoted + 1
      end
    end
  end
  return promoted
end

-- KEYS: delayed.  ARGV: how many.  Reply: ms until the next one after these (or -1), the due members
local function due(KEYS, ARGV)
  local at = now()
  local members = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', int(at), 'LIMIT', 0, ARGV[1])
  local next_one = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. int(at), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  local wait = -1
  if #members == tonumber(ARGV[1]) then wait = 0
  elseif next_one[2] then wait = tonumber(next_one[2]) - at end
  table.insert(members, 1, int(wait))
  return members
end

-- KEYS: record, lane, done, counters, dead letters, delayed, control, events
-- ARGV: entry, owner, delay in ms, failure, outcome if it was the last attempt, outcome if it is
--       cancelled, member of the delayed, queue, events
local function retry(KEYS, ARGV)
  local entry, owner, queue = ARGV[1], ARGV[2], ARGV[8]
  local l = read_lease(KEYS[2], entry, owner)
  if not l then
    local mine, state = concluded_by(KEYS[1], entry, owner)
    if not mine then return 'fenced' end
    return ended(state) and 'exhausted' or 'later'
  end
  local r = redis.call('HMGET', KEYS[1], 'm', 'c')
  local k = { job = KEYS[1], done = KEYS[3], counters = KEYS[4] }
  drop_entry(KEYS[2], entry)
  redis.call('HSET', KEYS[1], 'f', ARGV[4])
  sign(KEYS[1], l)
  if r[2] then
    conclude(k, l.id, queue, 'cancelled', ARGV[6], l.attempt, l.payload, l)
    return 'exhausted'
  end
  if l.attempt >= tonumber(r[1] or 0) then
    k.dead = KEYS[5]
    conclude(k, l.id, queue, 'failed', ARGV[5], l.attempt, l.payload, l)
    return 'exhausted'
  end
  local at = now() + tonumber(ARGV[3])
  local first = redis.call('ZRANGE', KEYS[6], 0, 0, 'WITHSCORES')
  redis.call('ZADD', KEYS[6], int(at), ARGV[7])
  redis.call('HSET', KEYS[1], 'st', 'delayed', 'a', l.attempt, 'j', l.payload, 'b', int(l.begun))
  keep_time(KEYS[1], entry)
  redis.call('HDEL', KEYS[1], 's')
  redis.call('HINCRBY', KEYS[4], queue .. ' delayed', 1)
  if not first[2] or at < tonumber(first[2]) then
    redis.call('XADD', KEYS[7], 'MAXLEN', '~', CONTROL_KEPT, '*', 'k', 'delayed')
  end
  append_events(KEYS[8], ARGV, 9)
  return 'later'
end

-- KEYS: record, lane, output.  ARGV: entry, owner, number of the write, chunk
local function print_output(KEYS, ARGV)
  if not holds(KEYS[2], ARGV[1], ARGV[2]) then return 'fenced' end
  if repeated(KEYS[1], ARGV[1], ARGV[3]) then return 'ok' end
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', OUTPUT_KEPT, '*', 'd', ARGV[4])
  redis.call('EXPIRE', KEYS[3], OUTPUT_TTL)
  note_write(KEYS[1], ARGV[1], ARGV[3])
  return 'ok'
end

-- A job that was given out and has a deadline: ends it, if that is over, as if it had not been given.
-- KEYS: record, lane, done, counters.  ARGV: entry, owner, deadline, queue, outcome if it is expired,
--       outcome if it is cancelled
local function begin(KEYS, ARGV)
  local l = read_lease(KEYS[2], ARGV[1], ARGV[2])
  if not l then return 'fenced' end
  if now() < tonumber(ARGV[3]) then return 'ok' end
  local cancelled = redis.call('HGET', KEYS[1], 'c')
  drop_entry(KEYS[2], ARGV[1])
  conclude({ job = KEYS[1], done = KEYS[3], counters = KEYS[4] }, l.id, ARGV[4],
    cancelled and 'cancelled' or 'expired', cancelled and ARGV[6] or ARGV[5], l.before, l.payload)
  return 'over'
end

-- A runner begins. KEYS: runners, their queues, queues, control, lanes
-- ARGV: name, ms that it counts as alive, number of queues, queues.  Reply: where control stands
local function open(KEYS, ARGV)
  for i = 5, #KEYS do make_lane(KEYS[i]) end
  redis.call('ZADD', KEYS[1], int(now() + tonumber(ARGV[2])), ARGV[1])
  local queues = {}
  for i = 4, 3 + tonumber(ARGV[3]) do queues[#queues + 1] = ARGV[i] end
  redis.call('SADD', KEYS[3], unpack(queues))
  redis.call('HSET', KEYS[2], ARGV[1], table.concat(queues, ','))
  local last = redis.call('XREVRANGE', KEYS[4], '+', '-', 'COUNT', 1)
  return last[1] and last[1][1] or '0-0'
end

-- KEYS: runners, their queues.  ARGV: name, ms that it counts as alive, queues
-- Reply: 1, or 0 when it was given up meanwhile
local function beat(KEYS, ARGV)
  local known = redis.call('ZSCORE', KEYS[1], ARGV[1])
  redis.call('ZADD', KEYS[1], int(now() + tonumber(ARGV[2])), ARGV[1])
  if known then return 1 end
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
  return 0
end

-- KEYS: runners.  Reply: those whose heartbeat is missing
local function silent(KEYS)
  return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', int(now()), 'LIMIT', 0, 256)
end

-- A runner is given up: it learns so in case it lives. KEYS: runners, their queues, control.  ARGV: name
local function give_up(KEYS, ARGV)
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[2], ARGV[1])
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', CONTROL_KEPT, '*', 'k', 'lost', 'w', ARGV[1])
  return 'ok'
end

-- Forgets consumers that hold nothing: deleting one drops what it holds.
-- KEYS: runners, lanes.  ARGV: names.  Reply: how many leases stood in the way
local function forget(KEYS, ARGV)
  local held = 0
  for _, name in ipairs(ARGV) do
    if not redis.call('ZSCORE', KEYS[1], name) then
      for i = 2, #KEYS do
        if redis.call('EXISTS', KEYS[i]) == 1 then
          local p = redis.call('XPENDING', KEYS[i], GROUP, '-', '+', 1, name)
          if #p == 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[i], GROUP, name)
          else held = held + 1 end
        end
      end
    end
  end
  return held
end
