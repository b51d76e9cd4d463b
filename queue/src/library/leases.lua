-- What the holder of a lease may do with it, and what happens to leases whose holder is gone.

-- The holder of a lease ended its attempt itself, but not the job.
local function sign(more, by)
  redis.call('HSET', more, 'ls', by.entry, 'lo', by.owner)
end

local function signed_by(more, entry, owner)
  local r = redis.call('HMGET', more, 'ls', 'lo')
  return r[1] == entry and r[2] == owner
end

-- The attempt leaves its place. An account that waited for a place of its own may have one now, and
-- no other runner would look.
local function leave(s, lane, entry, q)
  drop_entry(lane, entry, q)
  if is_limited(s) then wake(s) end
end

-- Ends a job that has not begun, whose lane the caller knew; tells the runner of one that runs.
-- Reply: its state after that.
local function withdraw_from(s, j, lane, record, state, outcome, only_unbegun)
  local kind, value = state_of(record), nil
  if kind == 'q' then
    local name, entry = place_in(s, record)
    local p = redis.call('XPENDING', lane, GROUP, entry, entry, 1)
    if #p > 0 then
      if state == 'cancelled' and not only_unbegun and redis.call('HSETNX', j.more, 'c', 1) == 1 then
        if redis.call('TTL', j.more) == -1 then redis.call('EXPIRE', j.more, LONG_TTL) end
        tell(s, 'k', 'cancel', 'w', p[1][2], 'l', name, 's', entry)
      end
      return 'running'
    end
    value = read_entry(lane, entry)
    redis.call('XDEL', lane, entry)
    keep_time(j.more, entry)
  else
    value = redis.call('HGET', j.more, 'j')
    if kind == 'd' then
      redis.call('ZREM', s.delayed, j.member)
      count_delayed(s, j.queue, value, -1)
    else
      count(s, j.queue, '-', 'waiting', -1)
    end
  end
  conclude(s, j, state, value and attempts_of(value) or 0, outcome, value and payload_of(value) or '')
  return state
end

-- KEYS: shared, job, lane.  ARGV: job, name of the lane where the caller saw it ('' in none), state
--       (cancelled, expired; unbegun: cancelled, unless it runs), outcome
local function withdraw(KEYS, ARGV)
  local s = shared(KEYS)
  local j = job_at(KEYS, SHARED + 1, ARGV, 1)
  local record = redis.call('GET', j.record)
  if not record then return 'unknown' end
  if ended(record) then return state_of(record) end
  local name = place_in(s, record)
  if name and name ~= ARGV[JOB_ARGS+1] then return 'moved' end
  local word, only_unbegun = ARGV[JOB_ARGS+2], ARGV[JOB_ARGS+2] == 'unbegun'
  local state = withdraw_from(s, j, KEYS[SHARED+JOB_KEYS+1], record, only_unbegun and 'cancelled' or word,
    ARGV[JOB_ARGS+3], only_unbegun)
  settle(s)
  return state
end

-- Gives leases back: `died` counts the attempt, `released` does not.
-- KEYS: shared, queues, lanes, then per lease: job, the lane where it is
-- ARGV: died|released, owner, outcome of the cancelled, outcome of the quarantined, queues, lanes,
--       then per lease: job, place of the lane for what was under way, most attempts, entry
local function give_back(KEYS, ARGV)
  local s = shared(KEYS)
  local died, owner = ARGV[1] == 'died', ARGV[2]
  local _, homes, k, a = places_at(KEYS, SHARED + 1, ARGV, 5)
  local given = 0
  while a <= #ARGV do
    local j, lane = job_at(KEYS, k, ARGV, a), KEYS[k+JOB_KEYS]
    local home, most, entry = homes[tonumber(ARGV[a+JOB_ARGS])], tonumber(ARGV[a+JOB_ARGS+1]), ARGV[a+JOB_ARGS+2]
    local l = read_lease(s, lane, entry, owner)
    if l then
      local known = redis.call('GET', j.record)
      leave(s, lane, entry, home.queue)
      given = given + 1
      if known and not ended(known) then
        local attempts = died and l.attempt or l.before
        keep_time(j.more, entry)
        -- Not its holder's word: should the holder live, what it says about the end is refused.
        l.entry = '-'
        if redis.call('HEXISTS', j.more, 'c') == 1 then
          conclude(s, j, 'cancelled', l.attempt, ARGV[3], payload_of(l.value), l)
        elseif died and attempts >= most then
          conclude(s, j, 'quarantined', attempts, ARGV[4], payload_of(l.value), l, true)
        else
          if died then remember(s, j.more, l, 'died', '') end
          local name, new = put(s, home.queue, home, with_attempts(l.value, attempts), true)
          redis.call('SET', j.record, record_at(s, name, new))
        end
      end
    end
    k = k + JOB_KEYS + 1
    a = a + JOB_ARGS + 3
  end
  settle(s)
  return given
end

-- KEYS: shared, queues, lanes, then per job: record, more
-- ARGV: queues, lanes, then per job: place of its home, member
local function promote(KEYS, ARGV)
  local s = shared(KEYS)
  local _, homes, k, a = places_at(KEYS, SHARED + 1, ARGV, 1)
  local promoted = 0
  while a <= #ARGV do
    local home, member, record, more = homes[tonumber(ARGV[a])], ARGV[a+1], KEYS[k], KEYS[k+1]
    local score = redis.call('ZSCORE', s.delayed, member)
    if score and tonumber(score) <= s.at then
      redis.call('ZREM', s.delayed, member)
      local value = redis.call('HGET', more, 'j')
      if value and string.sub(redis.call('GET', record) or '', 1, 1) == 'd' then
        count_delayed(s, home.queue.name, value, -1)
        local lane, entry = put(s, home.queue, home, value)
        redis.call('SET', record, record_at(s, lane, entry))
        redis.call('HDEL', more, 'j')
        promoted = promoted + 1
      end
    end
    k = k + 2
    a = a + 2
  end
  settle(s)
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

-- What was to be looked at has been. KEYS: delayed.  ARGV: member, its score at most
local function forget_due(KEYS, ARGV)
  local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
  if score and tonumber(score) <= now() then redis.call('ZREM', KEYS[1], ARGV[1]) end
  return 'ok'
end

-- KEYS: shared, job, lane, events
-- ARGV: job, entry, owner, most attempts, delay in ms, failure, outcome if it was the last attempt,
--       outcome if it is cancelled, events
local function retry(KEYS, ARGV)
  local s = shared(KEYS)
  local j = job_at(KEYS, SHARED + 1, ARGV, 1)
  local lane, events = KEYS[SHARED+JOB_KEYS+1], KEYS[SHARED+JOB_KEYS+2]
  local a = JOB_ARGS + 1
  local entry, owner = ARGV[a], ARGV[a+1]
  local l = read_lease(s, lane, entry, owner)
  if not l then
    if ended_by(redis.call('GET', j.record), entry, owner) then return 'exhausted' end
    return signed_by(j.more, entry, owner) and 'later' or 'fenced'
  end
  leave(s, lane, entry)
  redis.call('HSET', j.more, 'f', ARGV[a+4])
  keep_time(j.more, entry)
  if redis.call('HEXISTS', j.more, 'c') == 1 then
    conclude(s, j, 'cancelled', l.attempt, ARGV[a+6], payload_of(l.value), l)
    settle(s)
    return 'exhausted'
  end
  if l.attempt >= tonumber(ARGV[a+2]) then
    conclude(s, j, 'failed', l.attempt, ARGV[a+5], payload_of(l.value), l, true)
    settle(s)
    return 'exhausted'
  end
  sign(j.more, l)
  remember(s, j.more, l, 'retried', ARGV[a+4])
  delay(s, j, with_attempts(l.value, l.attempt), s.at + tonumber(ARGV[a+3]))
  append_events(events, ARGV, a + 7)
  settle(s)
  return 'later'
end

-- What a lease writes while it runs. KEYS: more, lane, output.  ARGV: entry, owner, number of the
-- write, chunk
local function print_output(KEYS, ARGV)
  if not holds(KEYS[2], ARGV[1], ARGV[2]) then return 'fenced' end
  if repeated(KEYS[1], ARGV[1], ARGV[3]) then return 'ok' end
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', OUTPUT_KEPT, '*', 'd', ARGV[4])
  redis.call('EXPIRE', KEYS[3], OUTPUT_TTL)
  note_write(KEYS[1], ARGV[1], ARGV[3])
  return 'ok'
end

-- KEYS: more, lane.  ARGV: entry, owner, progress
local function progress(KEYS, ARGV)
  if not holds(KEYS[2], ARGV[1], ARGV[2]) then return 'fenced' end
  redis.call('HSET', KEYS[1], 'p', ARGV[3])
  return 'ok'
end

-- A job that was given out and has a deadline: ends it, if that is over, as if it had not been given.
-- KEYS: shared, job, lane.  ARGV: job, entry, owner, deadline, outcome if it is expired, outcome if it
--       is cancelled
local function begin(KEYS, ARGV)
  local s = shared(KEYS)
  local j = job_at(KEYS, SHARED + 1, ARGV, 1)
  local lane, a = KEYS[SHARED+JOB_KEYS+1], JOB_ARGS + 1
  local l = read_lease(s, lane, ARGV[a], ARGV[a+1])
  if not l then return 'fenced' end
  if s.at < tonumber(ARGV[a+2]) then return 'ok' end
  local cancelled = redis.call('HEXISTS', j.more, 'c') == 1
  leave(s, lane, ARGV[a])
  keep_time(j.more, ARGV[a])
  conclude(s, j, cancelled and 'cancelled' or 'expired', l.before, cancelled and ARGV[a+4] or ARGV[a+3],
    payload_of(l.value))
  settle(s)
  return 'over'
end

-- What an owner holds of one lane from its `first` item to its `last`, in one look: entry -> since
-- when it holds it, in ms. Entries beyond the look are asked for one by one.
local LOOK = 512
local function held_between(lane, first, last, owner)
  local rows = redis.pcall('XPENDING', lane, GROUP, first, last, LOOK, owner)
  local held = {}
  if rows.err then return held, true end
  for _, row in ipairs(rows) do
    if row[4] == 1 then held[row[1]] = row[3] end
  end
  return held, #rows < LOOK
end

-- Ends the jobs of one group that `owner` holds, each judged by itself: their records stand in KEYS after
-- k, their entries and outcomes in ARGV from a on. The others are missed; of those the ones that are not
-- the owner's to end are fenced, too.
local function finish_group(s, owner, g, KEYS, k, ARGV, a, missed, fenced)
  local call = redis.call
  local held, whole = held_between(g.lane, g.first, g.last, owner)
  local head, middle, by = 'e ' .. g.state .. ' ' .. g.attempt .. ' ', ' ' .. s.at .. ' ', ' ' .. owner .. '\n'
  -- Most leases of a batch began at the same few times.
  local heads, over = {}, {}
  for n = k + 1, k + g.leases do
    local entry, record = ARGV[a], KEYS[n]
    local idle = held[entry]
    if not idle and not whole then
      local is_held, since = holds(g.lane, entry, owner)
      idle = is_held and since
    end
    if idle then
      local begun = heads[idle]
      if not begun then
        begun = head .. (s.at - idle) .. middle
        heads[idle] = begun
      end
      call('SET', record, begun .. entry .. by .. ARGV[a+1], 'EX', RECORD_TTL)
      over[#over+1] = entry
    else
      missed[n] = true
      if not ended_by(call('GET', record), entry, owner) then fenced[#fenced+1] = n end
    end
    a = a + 2
  end
  if #over == 0 then return end
  call('XACK', g.lane, GROUP, unpack(over))
  call('XDEL', g.lane, unpack(over))
  if is_limited(s) then wake(s) end
  count(s, g.queue, g.account, g.state, #over)
end

-- The ids and the states of what ended of these groups, whose records stand in KEYS after k.
local function ended_of(groups, KEYS, k, missed)
  local ids, states = {}, {}
  for _, g in ipairs(groups) do
    for n = k + 1, k + g.leases do
      if not missed[n] then
        ids[#ids+1] = string.sub(KEYS[n], -32)
        states[#states+1] = g.state
      end
    end
    k = k + g.leases
  end
  return ids, states
end

-- Others may have waited for these.
local function release_all(s, ids, states)
  if #ids == 0 then return end
  for n, others in ipairs(redis.call('HMGET', s.waited, unpack(ids))) do
    if others then
      redis.call('XADD', s.releases, '*', 'i', ids[n], 's', states[n])
      if not s.released then tell(s, 'k', 'released') end
      s.released = true
    end
  end
end

-- What piled up of finishes of jobs that have nothing special. A group has the lane, the account, the
-- state and the attempt in common.
-- KEYS: shared, a lane per group, then a record per lease, group by group
-- ARGV: owner, groups, the ids of all jobs, then per group: its queue, account, state, attempt, first and
--       last entry, leases; then per lease: its entry, outcome and payload
-- Reply: places of those that are not the owner's to end
local function finish_many(KEYS, ARGV)
  local s = shared(KEYS)
  local groups, news, k, a = {}, ARGV[3], SHARED + tonumber(ARGV[2]), 4
  for i = SHARED + 1, k do
    groups[#groups+1] = { lane = KEYS[i], queue = ARGV[a], account = ARGV[a+1], state = ARGV[a+2],
      attempt = ARGV[a+3], first = ARGV[a+4], last = ARGV[a+5], leases = tonumber(ARGV[a+6]) }
    a = a + 7
  end
  local missed, fenced, next_one = {}, {}, k
  for _, g in ipairs(groups) do
    finish_group(s, ARGV[1], g, KEYS, next_one, ARGV, a, missed, fenced)
    next_one, a = next_one + g.leases, a + 2 * g.leases
  end
  local are_waited_for = redis.call('EXISTS', s.waited) == 1
  if next(missed) or are_waited_for then
    local ids, states = ended_of(groups, KEYS, k, missed)
    news = table.concat(ids, ' ')
    if are_waited_for then release_all(s, ids, states) end
  end
  if news ~= '' then redis.call('XADD', s.done, 'MAXLEN', '~', DONE_KEPT, '*', 'i', news) end
  settle(s)
  for i, n in ipairs(fenced) do fenced[i] = n - k end
  return fenced
end

-- A job that others waited for has ended. KEYS: shared, queues, lanes, then per job that waited: job
-- ARGV: entry of the releases, id, its state, those who wait as the caller saw them, those of them that
--       are left for the next call, outcome if they fail for it, queues, lanes, then per job that
--       waited: job, place of its home, not before
local function release(KEYS, ARGV)
  local s = shared(KEYS)
  local entry, id, state, seen, rest, failed = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  if (redis.call('HGET', s.waited, id) or '') ~= seen then return 'moved' end
  local _, homes, k, a = places_at(KEYS, SHARED + 1, ARGV, 7)
  while a <= #ARGV do
    local j = job_at(KEYS, k, ARGV, a)
    local home, starts_at = homes[tonumber(ARGV[a+JOB_ARGS])], tonumber(ARGV[a+JOB_ARGS+1])
    local waiting = string.sub(redis.call('GET', j.record) or '', 1, 1) == 'w'
    if waiting and redis.call('HDEL', j.more, 'w ' .. id) == 1 then
      local value = redis.call('HGET', j.more, 'j')
      if state ~= 'succeeded' then
        count(s, j.queue, '-', 'waiting', -1)
        conclude(s, j, 'failed', 0, failed, payload_of(value))
      elseif redis.call('HINCRBY', j.more, 'wn', -1) == 0 then
        count(s, j.queue, '-', 'waiting', -1)
        start(s, home.queue, home, j, value, starts_at)
      end
    end
    k = k + JOB_KEYS
    a = a + JOB_ARGS + 2
  end
  if rest == '' then
    redis.call('HDEL', s.waited, id)
    redis.call('XDEL', s.releases, entry)
  else
    redis.call('HSET', s.waited, id, rest)
  end
  settle(s)
  return 'ok'
end

-- It is the next one's turn in an order. KEYS: shared, queues, lanes, job.
-- ARGV: entry of the releases, queues, lanes, job (the first of the order, as the caller saw it), place
--       of its home, not before
local function release_next(KEYS, ARGV)
  local s = shared(KEYS)
  local _, homes, k, a = places_at(KEYS, SHARED + 1, ARGV, 2)
  local j = job_at(KEYS, k, ARGV, a)
  if redis.call('LINDEX', j.order, 0) ~= j.member then return 'moved' end
  local waiting = string.sub(redis.call('GET', j.record) or '', 1, 1) == 'w'
  if waiting and redis.call('HDEL', j.more, 'w #') == 1 and redis.call('HINCRBY', j.more, 'wn', -1) == 0 then
    local home = homes[tonumber(ARGV[a+JOB_ARGS])]
    count(s, j.queue, '-', 'waiting', -1)
    start(s, home.queue, home, j, redis.call('HGET', j.more, 'j'), tonumber(ARGV[a+JOB_ARGS+1]))
  end
  redis.call('XDEL', s.releases, ARGV[1])
  settle(s)
  return 'ok'
end
