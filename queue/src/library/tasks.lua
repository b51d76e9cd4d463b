-- Tasks: one deployment on this node. A hash: v version, ph phase, job, nd how many it declares,
-- cpu, mem, disk reserved, at, doc the document (none once deleted; what stands beside it counts
-- instead of what it says of the same), nonce of what was accepted last.
-- Its journal is another hash: the version, N what its script did as its N-th effect, N= how that
-- ended, after a line that says by which lease. What the version under way declares is read from there.
-- The sums of what is reserved, and the totals, are one hash: cpu, mem, disk, t-cpu, t-mem, t-disk; and
-- of accounts `u ACCOUNT cpu`…, the sums of theirs, and `l ACCOUNT`, their allowance, where they may
-- not have whatever is free: `NUMBER CPU MEM DISK`. NUMBER orders what the ledger is told of it.

local DIMENSIONS = { 'cpu', 'mem', 'disk' }

-- A task in the arguments from `at`; nil when there is none. Second: where the arguments go on.
local function read_task(args, at)
  if args[at] ~= 'task' then return nil, at + 1 end
  return {
    name = args[at+1], v = args[at+2], ph = args[at+3], job = args[at+4], nd = args[at+5],
    cpu = tonumber(args[at+6]), mem = tonumber(args[at+7]), disk = tonumber(args[at+8]),
    at = args[at+9], doc = args[at+10],
  }, at + 11
end

-- What is free for a task; nil when what it asks fits. What does not grow always fits.
local function shortfall(k, t)
  local old = redis.call('HMGET', k.task, 'cpu', 'mem', 'disk')
  local used = redis.call('HMGET', k.capacity, 'cpu', 'mem', 'disk')
  local total = redis.call('HMGET', k.capacity, 't-cpu', 't-mem', 't-disk')
  local short, free = false, { 'short' }
  for i, d in ipairs(DIMENSIONS) do
    local had = tonumber(old[i] or 0)
    local left = tonumber(total[i] or 0) - (tonumber(used[i] or 0) - had)
    if t[d] > had and t[d] > left then short = true end
    free[#free + 1] = int(math.max(left, 0))
  end
  return short and free or nil
end

local function allowance_of(capacity, account)
  local text = redis.call('HGET', capacity, 'l ' .. account)
  if not text then return nil end
  local number, cpu, mem, disk = string.match(text, '^(%d+) (%d+) (%d+) (%d+)$')
  return { number = number, tonumber(cpu), tonumber(mem), tonumber(disk) }
end

local function set_allowance(capacity, account, number, amounts)
  redis.call('HSET', capacity, 'l ' .. account,
    number .. ' ' .. int(amounts[1]) .. ' ' .. int(amounts[2]) .. ' ' .. int(amounts[3]))
end

-- What the deployments of an account reserve together.
local function used_by(capacity, account)
  local r = redis.call('HMGET', capacity, 'u ' .. account .. ' cpu', 'u ' .. account .. ' mem',
    'u ' .. account .. ' disk')
  return { tonumber(r[1] or 0), tonumber(r[2] or 0), tonumber(r[3] or 0) }
end

local function account_of(k) return string.match(k.task, ':task:(%d+)/') end

-- What a task asks beyond the allowance of its account: the number of that, what is allowed, what
-- would be needed. Nil when it does not. What does not grow is always allowed.
local function excess(k, t)
  local account = account_of(k)
  local allowed = allowance_of(k.capacity, account)
  if not allowed then return nil end
  local old = redis.call('HMGET', k.task, 'cpu', 'mem', 'disk', 'counted')
  local used, beyond = used_by(k.capacity, account), false
  local reply = { 'beyond', allowed.number }
  for i, d in ipairs(DIMENSIONS) do
    local had = tonumber(old[i] or 0)
    local needed = used[i] - (old[4] and had or 0) + t[d]
    if t[d] > had and needed > allowed[i] then beyond = true end
    reply[2 + i], reply[5 + i] = int(allowed[i]), int(needed)
  end
  return beyond and reply or nil
end

-- The reply that says why a task cannot reserve so much, if it cannot.
local function lack(k, t) return shortfall(k, t) or excess(k, t) end

-- Reserves what the task is to have from now on.
local function reserve(k, t)
  local old = redis.call('HMGET', k.task, 'cpu', 'mem', 'disk', 'counted')
  local account = account_of(k)
  for i, d in ipairs(DIMENSIONS) do
    local had = tonumber(old[i] or 0)
    if t[d] ~= had then redis.call('HINCRBY', k.capacity, d, int(t[d] - had)) end
    -- One that was there before accounts were counted counts from now on.
    local change = t[d] - (old[4] and had or 0)
    local field = 'u ' .. account .. ' ' .. d
    if change ~= 0 and redis.call('HINCRBY', k.capacity, field, int(change)) == 0 then
      redis.call('HDEL', k.capacity, field)
    end
  end
  redis.call('HSET', k.task, 'ph', t.ph, 'cpu', int(t.cpu), 'mem', int(t.mem), 'disk', int(t.disk), 'at', t.at,
    'counted', 1)
end

local function put_task(k, t)
  local gone = t.ph == 'deleted'
  if gone then
    for _, d in ipairs(DIMENSIONS) do t[d] = 0 end
  end
  reserve(k, t)
  redis.call('HSET', k.task, 'v', t.v, 'job', t.job)
  -- Declarations come through the journal; all at once they go. The journal of a failed version is
  -- kept until the next one comes.
  if t.nd == '0' then
    redis.call('HSET', k.task, 'nd', 0)
    if t.ph ~= 'failed' then redis.call('DEL', k.journal) end
  end
  if gone then
    redis.call('HDEL', k.task, 'doc')
    redis.call('DEL', k.statuses)
    redis.call('SREM', k.tasks, t.name)
    redis.call('EXPIRE', k.task, LONG_TTL)
  else
    redis.call('HSET', k.task, 'doc', t.doc)
    redis.call('SADD', k.tasks, t.name)
    redis.call('PERSIST', k.task)
  end
end

-- Whether the node still holds the task as its writer knows it: the same version, under the same job.
local function is_current(k, t)
  local r = redis.call('HMGET', k.task, 'v', 'job')
  return r[1] == t.v and r[2] == t.job
end

local function task_keys(KEYS, at)
  return { task = KEYS[at], tasks = KEYS[at+1], capacity = KEYS[at+2], statuses = KEYS[at+3], journal = KEYS[at+4] }
end
local TASK_KEYS = 5

-- KEYS: shared, job, lane, events, then with a task: task, tasks, capacity, statuses, journal
-- ARGV: job, entry, owner, state, outcome, task, events
local function finish(KEYS, ARGV)
  local s = shared(KEYS)
  local j = job_at(KEYS, SHARED + 1, ARGV, 1)
  local k, a = SHARED + JOB_KEYS + 1, JOB_ARGS + 1
  local lane, events, entry, owner = KEYS[k], KEYS[k+1], ARGV[a], ARGV[a+1]
  local t, at = read_task(ARGV, a + 4)
  local l = read_lease(s, lane, entry, owner)
  if not l then return { ended_by(redis.call('GET', j.record), entry, owner) and 'ok' or 'fenced' } end
  local keys = t and task_keys(KEYS, k + 2)
  if t then
    if not is_current(keys, t) then return { 'fenced' } end
    local no = lack(keys, t)
    if no then return no end
  end
  leave(s, lane, entry)
  conclude(s, j, ARGV[a+2], l.attempt, ARGV[a+3], payload_of(l.value), l)
  if t then put_task(keys, t) end
  append_events(events, ARGV, at)
  settle(s)
  return { 'ok' }
end

-- KEYS: more, lane, events, task, tasks, capacity, statuses, journal
-- ARGV: entry, owner, number of the write, task, events
local function update(KEYS, ARGV)
  local t, at = read_task(ARGV, 4)
  if not holds(KEYS[2], ARGV[1], ARGV[2]) then return { 'fenced' } end
  if repeated(KEYS[1], ARGV[1], ARGV[3]) then return { 'ok' } end
  local k = task_keys(KEYS, 4)
  if not is_current(k, t) then return { 'fenced' } end
  local no = lack(k, t)
  if no then return no end
  put_task(k, t)
  append_events(KEYS[3], ARGV, at)
  note_write(KEYS[1], ARGV[1], ARGV[3])
  return { 'ok' }
end

-- What a script did, and the jobs for it. KEYS: shared, more, lane, events, task, tasks, capacity,
--       statuses, journal, then queues, lanes, jobs
-- ARGV: entry, owner, number of the write, version, job, phase, amounts (3), time, how many more are
--       declared, twice the fields, (field, value)…, events, queues, lanes, jobs
local function journal(KEYS, ARGV)
  local s, base = shared(KEYS), SHARED
  local more, lane, events = KEYS[base+1], KEYS[base+2], KEYS[base+3]
  if not holds(lane, ARGV[1], ARGV[2]) then return { 'fenced' } end
  if repeated(more, ARGV[1], ARGV[3]) then return { 'ok' } end
  local k = task_keys(KEYS, base + 4)
  local t = { v = ARGV[4], job = ARGV[5], ph = ARGV[6], cpu = tonumber(ARGV[7]), mem = tonumber(ARGV[8]),
    disk = tonumber(ARGV[9]), at = ARGV[10] }
  if not is_current(k, t) then return { 'fenced' } end
  local no = lack(k, t)
  if no then return no end
  reserve(k, t)
  redis.call('HINCRBY', k.task, 'nd', ARGV[11])
  local fields = tonumber(ARGV[12])
  if fields > 0 then redis.call('HSET', k.journal, 'version', t.v, unpack(ARGV, 13, 12 + fields)) end
  local at = 13 + fields
  append_events(events, ARGV, at)
  submit_jobs(s, KEYS, base + 4 + TASK_KEYS, ARGV, at + 1 + tonumber(ARGV[at]), false)
  note_write(more, ARGV[1], ARGV[3])
  settle(s)
  return { 'ok' }
end

-- A status is kept while its task is.
local function put_status(task, statuses, resource, is_there, status)
  local phase = redis.call('HGET', task, 'ph')
  if not phase or phase == 'deleted' then return end
  if is_there == '1' then redis.call('HSET', statuses, resource, status)
  else redis.call('HDEL', statuses, resource) end
end

-- KEYS: task, statuses.  ARGV: resource, whether there is one, status
local function status(KEYS, ARGV)
  put_status(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3])
  return 'ok'
end

-- KEYS: more, lane, events, task, statuses
-- ARGV: entry, owner, number of the write, resource, whether there is one, status, events
local function lease_status(KEYS, ARGV)
  if not holds(KEYS[2], ARGV[1], ARGV[2]) then return 'fenced' end
  if repeated(KEYS[1], ARGV[1], ARGV[3]) then return 'ok' end
  put_status(KEYS[4], KEYS[5], ARGV[4], ARGV[5], ARGV[6])
  append_events(KEYS[3], ARGV, 7)
  note_write(KEYS[1], ARGV[1], ARGV[3])
  return 'ok'
end

-- KEYS: events, a key that is there while this call may be repeated.  ARGV: events
local function publish(KEYS, ARGV)
  if redis.call('SET', KEYS[2], 1, 'NX', 'EX', 300) then append_events(KEYS[1], ARGV, 1) end
  return 'ok'
end

local SETTLED = { ready = true, failed = true, refused = true, deleted = true }

-- What the node holds is as the caller saw it, and can become this; nil, or the reply that says why not.
local function objection(s, old, t, deleting, seen)
  if not old.v then return nil end
  local newer = tonumber(t.v) > tonumber(old.v)
  if not newer and not (deleting and t.v == old.v) then return { 'stale', old.v } end
  if not SETTLED[old.ph] and not deleting then return { 'conflict', old.ph } end
  local as_seen = old.v == seen.v and old.ph == seen.ph
  local unseen = seen.v == '' and old.ph == 'deleted'
  local declared = seen.declared ~= '1' or old.nd == t.nd
  if not (as_seen or unseen) or not declared then return { 'conflict', old.ph } end
  if deleting and not SETTLED[old.ph] and old.job ~= seen.worker then return { 'moved' } end
end

-- The job that works on a task shall stop. Reply: its state after that, `moved` or `unknown`.
local function supersede(s, j, lane, lane_name, outcome)
  local record = redis.call('GET', j.record)
  if not record then return 'unknown' end
  if ended(record) then return 'ended' end
  local name = place_in(s, record)
  if name and name ~= lane_name then return 'moved' end
  return withdraw_from(s, j, lane, record, 'cancelled', outcome)
end

-- What an account may have: whatever is free, or at least this.
local function allow(capacity, account, words)
  if words == '' then return end
  if words == 'all' then
    redis.call('HDEL', capacity, 'l ' .. account)
    return
  end
  local cpu, mem, disk = string.match(words, '^(%d+) (%d+) (%d+)$')
  local least, allowed = { tonumber(cpu), tonumber(mem), tonumber(disk) }, allowance_of(capacity, account)
  local number = allowed and allowed.number or '0'
  for i in ipairs(DIMENSIONS) do least[i] = math.max(least[i], allowed and allowed[i] or 0) end
  set_allowance(capacity, account, number, least)
end

-- The ledger has agreed to another allowance. KEYS: capacity.  ARGV: account, its number as the caller
-- saw it, the one from now on, amounts (3)
local function agree(KEYS, ARGV)
  local allowed = allowance_of(KEYS[1], ARGV[1])
  if not allowed or allowed.number ~= ARGV[2] then return 'moved' end
  set_allowance(KEYS[1], ARGV[1], ARGV[3], { tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]) })
  return 'ok'
end

-- An account may have what it has, and at least so much: no more from now on.
-- KEYS: capacity.  ARGV: account, at least (3).  Reply: the allowance with its number
local function trim(KEYS, ARGV)
  local known = allowance_of(KEYS[1], ARGV[1])
  local allowed = known or { number = '0' }
  local used, changed = used_by(KEYS[1], ARGV[1]), false
  for i in ipairs(DIMENSIONS) do
    local amount = math.max(used[i], tonumber(ARGV[1 + i]))
    changed = changed or amount ~= allowed[i]
    allowed[i] = amount
  end
  local number = changed and int(tonumber(allowed.number) + 1) or allowed.number
  if changed then set_allowance(KEYS[1], ARGV[1], number, allowed) end
  return { number, int(allowed[1]), int(allowed[2]), int(allowed[3]) }
end

-- KEYS: shared, task, tasks, capacity, statuses, journal, nonce, events, job that works on it, its
--       lane, then queues, lanes, jobs
-- ARGV: digest, nonce, its expiry (s), totals (3), version and phase that the caller saw (or '' ''),
--       whether its declarations must be those that it saw, outcome of the cancelled, what its account
--       may have (`all`, at least CPU MEM DISK, or '': as before), job that works on it, name of its
--       lane, task, events, queues, lanes, jobs
local function accept(KEYS, ARGV)
  local s = shared(KEYS)
  local k = task_keys(KEYS, SHARED + 1)
  local base = SHARED + 1 + TASK_KEYS
  local nonce, events = KEYS[base], KEYS[base+1]
  local worker = job_at(KEYS, base + 2, ARGV, 12)
  local lane, lane_name = KEYS[base+2+JOB_KEYS], ARGV[12+JOB_ARGS]
  local t, at = read_task(ARGV, 13 + JOB_ARGS)
  local r = redis.call('HMGET', k.task, 'v', 'ph', 'job', 'nonce', 'nd')
  local old = { v = r[1], ph = r[2], job = r[3], nonce = r[4], nd = r[5] }
  local deleting = t.ph == 'deleting'

  local used = redis.call('GET', nonce)
  if used then
    if used == ARGV[1] and old.nonce == ARGV[2] and old.v == t.v then return { 'same' } end
    return { 'replayed' }
  end
  local no = objection(s, old, t, deleting,
    { v = ARGV[7], ph = ARGV[8], declared = ARGV[9], worker = worker.id })
  if no then return no end
  local before = redis.call('HMGET', k.capacity, 't-cpu', 't-mem', 't-disk')
  if ARGV[4] ~= before[1] or ARGV[5] ~= before[2] or ARGV[6] ~= before[3] then
    redis.call('HSET', k.capacity, 't-cpu', ARGV[4], 't-mem', ARGV[5], 't-disk', ARGV[6])
  end
  allow(k.capacity, account_of(k), ARGV[11])
  no = lack(k, t)
  if no then return no end

  local superseded = ''
  if deleting and old.v and not SETTLED[old.ph] and old.job ~= t.job then
    local state = supersede(s, worker, lane, lane_name, ARGV[10])
    if state == 'moved' then return { 'moved' } end
    if state ~= 'unknown' then superseded = worker.id end
  end
  redis.call('SET', nonce, ARGV[1], 'EXAT', ARGV[3])
  if not deleting then redis.call('DEL', k.journal) end
  put_task(k, t)
  redis.call('HSET', k.task, 'nonce', ARGV[2])
  append_events(events, ARGV, at)
  -- A job that ended is asked for anew: it was signed for anew.
  submit_jobs(s, KEYS, base + 3 + JOB_KEYS, ARGV, at + 1 + tonumber(ARGV[at]), true)
  settle(s)
  return { 'accepted', superseded }
end
