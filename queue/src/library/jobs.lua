-- Jobs. A job is known by a string, its record:
--   q LANE ENTRY     it waits in a lane or runs: the lane's group knows which; mostly as a number
--   d LANE           it is delayed; LANE is the one of its account
--   w LANE           it waits for other jobs
--   e STATE ATTEMPTS BEGUN ENDED ENTRY OWNER\nOUTCOME\nPAYLOAD    it has ended
-- What most jobs never have is a hash beside it:
--   j value, while it is in no lane   t submitted, when the entry does not tell   f last failure
--   c cancel asked for   ls, lo the entry and owner that last ended its attempt itself
--   us, un last write   p progress   h N how attempt N ended   w ID a job that it waits for   wn how many

local function state_of(record)
  local kind = string.sub(record, 1, 1)
  if kind == 'e' then return (string.match(record, '^e (%a+)')) end
  return string.find(kind, '%d') and 'q' or kind
end

local function ended(record) return record and string.sub(record, 1, 1) == 'e' end

local function ended_record(s, state, attempts, by, outcome, payload)
  return 'e ' .. state .. ' ' .. attempts .. ' ' .. (by and by.begun or '-') .. ' ' .. s.at
    .. ' ' .. (by and by.entry or '-') .. ' ' .. (by and by.owner or '-') .. '\n' .. outcome .. '\n' .. payload
end

-- The state of an ended job, when it was this lease's holder who ended it and asks again because it
-- heard no answer.
local function ended_by(record, entry, owner)
  if not record then return nil end
  local state, e, o = string.match(record, '^e (%a+) %d+ %S+ %d+ (%S+) ([^\n]+)')
  return e == entry and o == owner and state or nil
end

-- The job leaves its first entry: when that was made is when it was submitted.
local function keep_time(more, entry)
  redis.call('HSETNX', more, 't', string.match(entry, '^%d+'))
end

-- How an attempt ended that is not the last.
local function remember(s, more, l, how, failure)
  redis.call('HSET', more, 'h ' .. l.attempt, int(l.begun) .. ' ' .. int(s.at) .. ' ' .. how .. ' ' .. l.owner
    .. '\n' .. failure)
  redis.call('HDEL', more, 'h ' .. (l.attempt - ATTEMPTS_KEPT))
end

-- What is to be known of a job to end or to move it. A job's member is `ID LANE`: it stands for it in
-- the delayed, in an order, and with those for which it waits. From the arguments: member, unique, the
-- name of its order, the effect that ends with it (`VERSION N`, with `!` after it unless it succeeds);
-- keys: record, more, its order, the journal of that effect (or the record again), dead letters.
local JOB_KEYS, JOB_ARGS = 5, 4
local function job_of(member, record, more)
  local id, home, queue, account = string.match(member, '^(%x+) ((.+):(%d+):%d)$')
  return { member = member, id = id, home = home, queue = queue, account = account, record = record, more = more }
end
local function job_at(KEYS, k, ARGV, a)
  local j = job_of(ARGV[a], KEYS[k], KEYS[k+1])
  j.unique, j.order_name, j.ends = ARGV[a+1], ARGV[a+2], ARGV[a+3]
  j.order = j.order_name ~= '' and KEYS[k+2] or nil
  j.journal, j.dead = KEYS[k+3], KEYS[k+4]
  return j
end

-- What waited for this job, or for its place, may go on.
local function release_others(s, j, state)
  if j.unique ~= '' and redis.call('HGET', s.unique, j.unique) == j.id then
    redis.call('HDEL', s.unique, j.unique)
  end
  local released = false
  if j.order then
    local head = redis.call('LINDEX', j.order, 0)
    redis.call('LREM', j.order, 1, j.member)
    if head == j.member and redis.call('EXISTS', j.order) == 1 then
      redis.call('XADD', s.releases, '*', 'o', j.order_name)
      released = true
    end
  end
  if redis.call('HEXISTS', s.waited, j.id) == 1 then
    redis.call('XADD', s.releases, '*', 'i', j.id, 's', state)
    released = true
  end
  if released then tell(s, 'k', 'released') end
end

-- The effect of a script that ends with this job: how is in its journal from now on, unless that is
-- gone, or is the one of another version.
local function end_effect(j, state, outcome, by)
  local version, call, only_failed = string.match(j.ends, '^(%d+) (%d+)(!?)$')
  if not version or only_failed == '!' and state == 'succeeded' then return end
  if redis.call('HGET', j.journal, 'version') ~= version then return end
  redis.call('HSETNX', j.journal, call .. '=', (by and by.entry or '-') .. '\n' .. outcome)
end

-- Ends a job. by: the lease, if it had one.
local function conclude(s, j, state, attempts, outcome, payload, by, is_dead)
  local ttl = is_dead and DEAD_TTL or RECORD_TTL
  redis.call('SET', j.record, ended_record(s, state, attempts, by, outcome, payload), 'EX', ttl)
  redis.call('HDEL', j.more, 'j')
  redis.call('EXPIRE', j.more, ttl)
  redis.call('ZREM', s.delayed, 'x ' .. j.member)
  redis.call('XADD', s.done, 'MAXLEN', '~', DONE_KEPT, '*', 'i', j.id)
  count(s, j.queue, j.account, state, 1)
  if j.ends ~= '' then end_effect(j, state, outcome, by) end
  if is_dead then redis.call('XADD', j.dead, 'MAXLEN', '~', DEAD_KEPT, '*', 'i', j.id) end
  release_others(s, j, state)
end

-- Whether the n-th write of this lease was already made.
local function repeated(more, entry, n)
  local r = redis.call('HMGET', more, 'us', 'un')
  return r[1] == entry and tonumber(r[2]) >= tonumber(n)
end

local function note_write(more, entry, n)
  redis.call('HSET', more, 'us', entry, 'un', n)
end

-- One more job that waits for a time, or one less; it failed before or not.
local function count_delayed(s, queue, value, n)
  count(s, queue, '-', 'delayed', n)
  if attempts_of(value) > 0 then count(s, queue, '-', 'retrying', n) end
end

-- A job becomes one that waits for a time.
local function delay(s, j, value, at)
  local first = redis.call('ZRANGE', s.delayed, 0, 0, 'WITHSCORES')
  redis.call('ZADD', s.delayed, int(at), j.member)
  redis.call('HSET', j.more, 'j', value)
  redis.call('SET', j.record, 'd ' .. j.home)
  count_delayed(s, j.queue, value, 1)
  if not first[2] or at < tonumber(first[2]) then tell(s, 'k', 'delayed') end
end

-- A job that waited for others starts: at once, or when its time comes.
local function start(s, q, home, j, value, starts_at)
  if starts_at > s.at then return delay(s, j, value, starts_at) end
  local lane, entry = put(s, q, home, value)
  redis.call('SET', j.record, record_at(s, lane, entry))
  redis.call('HDEL', j.more, 'j')
end

-- Notes the jobs that this one waits for. How many; nil when one of them ended in vain.
local function wait_for(s, j, o, KEYS, k)
  local waiting = 0
  for i, id in ipairs(o.after or {}) do
    local other = redis.call('GET', KEYS[k-1+i])
    if other and not ended(other) then
      if redis.call('HSETNX', j.more, 'w ' .. id, 1) == 1 then
        local others = redis.call('HGET', s.waited, id)
        redis.call('HSET', s.waited, id, (others and others .. ';' or '') .. j.member)
        waiting = waiting + 1
      end
    elseif not other or state_of(other) ~= 'succeeded' then
      return nil
    end
  end
  if o.order and redis.call('RPUSH', j.order, j.member) > 1 then
    redis.call('HSET', j.more, 'w #', 1)
    waiting = waiting + 1
  end
  return waiting
end

-- Jobs with more than the usual; o says what. Keys from k: more, order, children, journal, the records
-- of the jobs that it is after. Reply: the job in whose place it would be, when it was not taken.
local function submit_special(s, q, home, record, KEYS, k, value, o)
  local j = job_of(o.member, record, KEYS[k])
  j.unique, j.order, j.order_name = o.unique or '', o.order and KEYS[k+1] or nil, o.order
  j.ends, j.journal = o.ends or '', KEYS[k+3]
  if o.unique and redis.call('HSETNX', s.unique, o.unique, j.id) == 0 then
    return redis.call('HGET', s.unique, o.unique)
  end
  if o.parent then
    redis.call('SADD', KEYS[k+2], j.id)
    redis.call('EXPIRE', KEYS[k+2], LONG_TTL)
  end
  if o.expires_at then redis.call('ZADD', s.delayed, int(o.expires_at), 'x ' .. o.member) end
  redis.call('HSET', j.more, 't', int(s.at))
  local waiting = wait_for(s, j, o, KEYS, k + 4)
  if not waiting then
    conclude(s, j, 'failed', 0, o.failed, payload_of(value))
  elseif waiting > 0 then
    redis.call('HSET', j.more, 'j', value, 'wn', waiting)
    redis.call('SET', record, 'w ' .. j.home)
    count(s, j.queue, '-', 'waiting', 1)
  else
    start(s, q, home, j, value, o.starts_at or 0)
  end
end

-- A record, in words. KEYS: record, the numbers of lanes
local function record(KEYS)
  local text = redis.call('GET', KEYS[1])
  local lane, entry = place_in({ numbers = KEYS[2] }, text or '')
  return lane and 'q ' .. lane .. ' ' .. entry or text
end

-- The queues and lanes in the arguments from `a` and `k`: queues, then lanes.
local function places_at(KEYS, k, ARGV, a)
  local queues, homes = {}, {}
  local n = tonumber(ARGV[a])
  for i = 1, n do
    queues[i] = queue_at(KEYS, k, ARGV[a+i])
    k = k + 2
  end
  a = a + n + 1
  n = tonumber(ARGV[a])
  for i = 1, n do
    homes[i] = home_at(KEYS[k], ARGV[a+2*i-1])
    homes[i].queue = queues[tonumber(ARGV[a+2*i])]
    k = k + 1
  end
  return queues, homes, k, a + 2 * n + 1
end

-- Takes in the jobs in the arguments: per job the place of its lane, its value, what is special.
-- anew: those that ended begin again. Reply: place and word of those that were not taken.
local function submit_jobs(s, KEYS, k, ARGV, a, anew)
  local queues, homes
  queues, homes, k, a = places_at(KEYS, k, ARGV, a)
  for _, q in ipairs(queues) do redis.call('SADD', s.queues, q.name) end
  local records, places, specials = {}, {}, {}
  for n = 1, (#ARGV - a + 1) / 3 do
    local special = ARGV[a+3*n-1]
    local o = special ~= '' and cjson.decode(special)
    records[n], places[n], specials[n] = KEYS[k], k, o
    k = k + 1 + (o and 4 + #(o.after or {}) or 0)
  end
  -- All at once: redis-server looks up many keys in less time than it answers for one.
  local none_known = #records > 0 and redis.call('EXISTS', unpack(records)) == 0
  local odd, ours, new = {}, {}, {}
  local function write()
    if #new > 0 then redis.call('MSET', unpack(new)) end
    new = {}
  end
  for n, record in ipairs(records) do
    local home, value, o = homes[tonumber(ARGV[a])], ARGV[a+1], specials[n]
    local known = ours[record] or not none_known and redis.call('EXISTS', record) == 1
    if known and anew and not ours[record] and ended(redis.call('GET', record)) then
      redis.call('DEL', record)
      if o then redis.call('DEL', KEYS[places[n]+1]) end
      known = false
    end
    if known then
      odd[#odd+1] = int(n)
      odd[#odd+1] = 'known'
    elseif o then
      -- It may be after one of those.
      write()
      local other = submit_special(s, home.queue, home, record, KEYS, places[n] + 1, value, o)
      if other then
        odd[#odd+1] = int(n)
        odd[#odd+1] = other
      else
        ours[record] = true
      end
    else
      local lane, entry = put(s, home.queue, home, value)
      ours[record] = true
      new[#new+1] = record
      new[#new+1] = record_at(s, lane, entry)
    end
    a = a + 3
  end
  write()
  return odd
end

-- KEYS: shared, then queues, lanes, jobs.  ARGV: the same
local function submit(KEYS, ARGV)
  local s = shared(KEYS)
  local odd = submit_jobs(s, KEYS, SHARED + 1, ARGV, 1, false)
  settle(s)
  return odd
end

-- Takes from one lane; what it got is in the reply. How many.
local function take(reply, lane, owner, n)
  local got = redis.call('XREADGROUP', 'GROUP', GROUP, owner, 'COUNT', n, 'STREAMS', lane, '>')
  if not got then return 0 end
  reply[#reply+1] = got[1]
  return #got[1][2]
end

-- So many are not taken here: the runner reads them itself, which is cheaper.
local GRANTED = 16
-- What is taken here at a time.
local MOST = 256

-- The turn of one account: up to n jobs, what was under way first, then the urgent. How many.
local function take_turn(s, reply, q, x, account, owner, n)
  local there = {}
  for _, lane in ipairs(x.lanes) do
    if redis.call('EXISTS', lane) == 1 then there[#there+1] = lane end
  end
  if n >= GRANTED and not x.doubt and not limits_of(s, account) and #there > 0 then
    redis.call('ZINCRBY', q.turns, n, account)
    x.granted = true
    reply.grants[#reply.grants+1] = { account, n, there }
    return n
  end
  local got = 0
  n = math.min(n, MOST)
  for _, lane in ipairs(there) do
    if got < n then got = got + take(reply.taken, lane, owner, n - got) end
  end
  if got < n then redis.call('ZREM', q.turns, account)
  else redis.call('ZINCRBY', q.turns, got, account) end
  spend(s, q.name, account, got)
  return got
end

-- Accounts that a look sees.
local PAGE = 256
-- Where there are more, the next ones are looked at so many ms later.
local NEXT_PAGE = 250

-- These are at their limits, and more wait than one look sees: the others come before them.
local function pass_by(q, full)
  local last = #full > 0 and redis.call('ZRANGE', q.turns, PAGE - 1, PAGE - 1, 'WITHSCORES')[2]
  if not last then return false end
  for _, account in ipairs(full) do redis.call('ZADD', q.turns, 'XX', last + 1, account) end
  return true
end

-- What accounts wait for, in turn, until nothing is left or no slot is free. known: the lanes of the
-- accounts that the caller could name. Second: in how many ms an account may that may not now.
local function take_turns(s, reply, q, known, owner, left)
  local wait, over, full = nil, {}, {}
  while left > 0 do
    local able, others = {}, 0
    local page = redis.call('ZRANGE', q.turns, 0, PAGE - 1)
    for _, account in ipairs(page) do
      if not known[account] then others = others + 1
      elseif not over[account] then able[#able+1] = account end
    end
    if #able == 0 then break end
    local share = math.max(1, math.floor(left / (#able + others)))
    for _, account in ipairs(able) do
      local x = known[account]
      local n, later = allowance(s, q.name, account, x.lanes, math.min(share, left))
      if n > 0 then left = left - take_turn(s, reply, q, x, account, owner, n) end
      if later then wait = math.min(wait or later, later) end
      over[account] = n <= 0 or x.granted
      if n <= 0 and #page == PAGE then full[#full+1] = account end
      if left == 0 then break end
    end
  end
  if pass_by(q, full) then wait = math.min(wait or NEXT_PAGE, NEXT_PAGE) end
  return left, wait
end

-- KEYS: shared, then per queue: ready, turns, and four lanes per account that is named
-- ARGV: consumer, how many, queues, then per queue: its name, accounts, and of each: its name, and
--       whether there was less in its lanes than the caller was granted
-- Reply: ms until it is worth a look again (or -1), grants (account, how many, lanes), per queue the
-- accounts that have a turn, then what was taken
local function claim(KEYS, ARGV)
  local s = shared(KEYS)
  local owner, left, wait = ARGV[1], tonumber(ARGV[2]), nil
  local got, lines = { grants = {}, taken = {} }, {}
  local k, a = SHARED + 1, 4
  for i = 1, tonumber(ARGV[3]) do
    local q, known, accounts = queue_at(KEYS, k, ARGV[a]), {}, tonumber(ARGV[a+1])
    k = k + 2
    a = a + 2
    for n = 1, accounts do
      known[ARGV[a]] = { lanes = { KEYS[k], KEYS[k+1], KEYS[k+2], KEYS[k+3] }, doubt = ARGV[a+1] == '1' }
      k = k + 4
      a = a + 2
    end
    lines[i] = {}
    if left > 0 and not is_stopped(s, q) then
      left = left - take(got.taken, q.ready, owner, math.min(left, MOST))
      local later
      if left > 0 then left, later = take_turns(s, got, q, known, owner, left) end
      if later then wait = math.min(wait or later, later) end
      lines[i] = redis.call('ZRANGE', q.turns, 0, PAGE - 1)
    end
  end
  local reply = { wait or -1, got.grants }
  for _, line in ipairs(lines) do reply[#reply+1] = line end
  for _, lane in ipairs(got.taken) do reply[#reply+1] = lane end
  return reply
end
