-- Tasks: one deployment on this node. A hash: v version, ph phase, job, nd how many it declares,
-- cpu, mem, disk reserved, at, doc the document (none once deleted), nonce of what was accepted last.
-- The sums of what is reserved, and the totals, are one hash: cpu, mem, disk, t-cpu, t-mem, t-disk.

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

local function put_task(k, t)
  local old = redis.call('HMGET', k.task, 'cpu', 'mem', 'disk')
  local gone = t.ph == 'deleted'
  for i, d in ipairs(DIMENSIONS) do
    if gone then t[d] = 0 end
    local change = t[d] - tonumber(old[i] or 0)
    if change ~= 0 then redis.call('HINCRBY', k.capacity, d, int(change)) end
  end
  redis.call('HSET', k.task, 'v', t.v, 'ph', t.ph, 'job', t.job, 'nd', t.nd, 'cpu', int(t.cpu),
    'mem', int(t.mem), 'disk', int(t.disk), 'at', t.at)
  if gone then
    redis.call('HDEL', k.task, 'doc')
    redis.call('DEL', k.statuses)
    redis.call('SREM', k.tasks, t.name)
    redis.call('EXPIRE', k.task, TOMBSTONE_TTL)
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
  return { task = KEYS[at], tasks = KEYS[at+1], capacity = KEYS[at+2], statuses = KEYS[at+3] }
end

-- KEYS: record, lane, done, counters, events, then with a task: task, tasks, capacity, statuses
-- ARGV: entry, owner, queue, state, outcome, task, events
local function finish(KEYS, ARGV)
  local entry, owner = ARGV[1], ARGV[2]
  local t, at = read_task(ARGV, 6)
  local l = read_lease(KEYS[2], entry, owner)
  if not l then
    local mine, state = concluded_by(KEYS[1], entry, owner)
    return { mine and ended(state) and 'ok' or 'fenced' }
  end
  local k = t and task_keys(KEYS, 6)
  if t then
    if not is_current(k, t) then return { 'fenced' } end
    local short = shortfall(k, t)
    if short then return short end
  end
  drop_entry(KEYS[2], entry)
  sign(KEYS[1], l)
  conclude({ job = KEYS[1], done = KEYS[3], counters = KEYS[4] }, l.id, ARGV[3], ARGV[4], ARGV[5],
    l.attempt, l.payload, l)
  if t then put_task(k, t) end
  append_events(KEYS[5], ARGV, at)
  return { 'ok' }
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

-- What piled up of finishes without a task and without events; each is judged by itself.
-- KEYS: done, counters, L lanes, then a record per lease
-- ARGV: owner, L, then per lane: its queue, first and last entry of these leases;
--       then per lease: place of its lane, entry, id, state, outcome, attempt, payload
-- Reply: ok or fenced, per lease
local function finish_many(KEYS, ARGV)
  local owner, lanes = ARGV[1], tonumber(ARGV[2])
  local held, whole, over, at = {}, {}, {}, now()
  for i = 1, lanes do
    held[i], whole[i] = held_between(KEYS[2+i], ARGV[3*i+1], ARGV[3*i+2], owner)
    over[i] = {}
  end
  local reply, news, counts = {}, {}, {}
  local a = 3 + 3 * lanes
  local ended_at = int(at)
  for k = 3 + lanes, #KEYS do
    local job, i, entry = KEYS[k], tonumber(ARGV[a]), ARGV[a+1]
    local id, state = ARGV[a+2], ARGV[a+3]
    local idle = held[i][entry]
    if not idle and not whole[i] then
      local is_held, p = holds(KEYS[2+i], entry, owner)
      if is_held then idle = p[1][3] end
    end
    if idle then
      redis.call('HSET', job, 'st', state, 'o', ARGV[a+4], 'e', ended_at, 'a', ARGV[a+5], 'j', ARGV[a+6],
        'b', int(at - idle), 'ls', entry, 'lo', owner)
      redis.call('EXPIRE', job, RECORD_TTL)
      news[#news + 1] = id
      over[i][#over[i] + 1] = entry
      local counter = ARGV[3*i] .. ' ' .. state
      counts[counter] = (counts[counter] or 0) + 1
      reply[#reply + 1] = 'ok'
    else
      local mine, was = concluded_by(job, entry, owner)
      reply[#reply + 1] = mine and ended(was) and 'ok' or 'fenced'
    end
    a = a + 7
  end
  for i = 1, lanes do
    if #over[i] > 0 then
      redis.call('XACK', KEYS[2+i], GROUP, unpack(over[i]))
      redis.call('XDEL', KEYS[2+i], unpack(over[i]))
    end
  end
  for counter, n in pairs(counts) do redis.call('HINCRBY', KEYS[2], counter, n) end
  if #news > 0 then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', DONE_KEPT, '*', 'i', table.concat(news, ' '))
  end
  return reply
end

-- KEYS: record, lane, events, task, tasks, capacity, statuses
-- ARGV: entry, owner, number of the write, task, events
local function update(KEYS, ARGV)
  local t, at = read_task(ARGV, 4)
  if not holds(KEYS[2], ARGV[1], ARGV[2]) then return { 'fenced' } end
  if repeated(KEYS[1], ARGV[1], ARGV[3]) then return { 'ok' } end
  local k = task_keys(KEYS, 4)
  if not is_current(k, t) then return { 'fenced' } end
  local short = shortfall(k, t)
  if short then return short end
  put_task(k, t)
  append_events(KEYS[3], ARGV, at)
  note_write(KEYS[1], ARGV[1], ARGV[3])
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

-- KEYS: record, lane, events, task, statuses
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

-- KEYS: task, tasks, capacity, statuses, nonce, events, queues, delayed, done, counters, control,
--       record and lane of the job that works on it, then L lanes, then a record per job
-- ARGV: digest, nonce, its expiry (s), totals (3), version and phase that the caller saw (or '' ''),
--       whether its declarations must be those that it saw, outcome of the cancelled,
--       id, name of the lane and member of the job that works on it (or '' '' ''),
--       task, events, L, names of lanes, then per job: id, place of its lane, max, payload
local function accept(KEYS, ARGV)
  local k = task_keys(KEYS, 1)
  local t, at = read_task(ARGV, 14)
  local old = redis.call('HMGET', KEYS[1], 'v', 'ph', 'job', 'nonce', 'nd')
  local deleting = t.ph == 'deleting'

  local seen = redis.call('GET', KEYS[5])
  if seen then
    if seen == ARGV[1] and old[4] == ARGV[2] and old[1] == t.v then return { 'same' } end
    return { 'replayed' }
  end
  if old[1] then
    local newer = tonumber(t.v) > tonumber(old[1])
    if not newer and not (deleting and t.v == old[1]) then return { 'stale', old[1] } end
    if not SETTLED[old[2]] and not deleting then return { 'conflict', old[2] } end
    local as_seen = old[1] == ARGV[7] and old[2] == ARGV[8]
    local unseen = ARGV[7] == '' and old[2] == 'deleted'
    local declared = ARGV[9] ~= '1' or old[5] == t.nd
    if not (as_seen or unseen) or not declared then return { 'conflict', old[2] } end
    if deleting and not SETTLED[old[2]] and old[3] ~= ARGV[11] then return { 'moved' } end
  end
  local superseded = ''
  local under_way = deleting and old[1] and not SETTLED[old[2]] and old[3] ~= t.job
  local before = redis.call('HMGET', KEYS[3], 't-cpu', 't-mem', 't-disk')
  local total = { tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]) }
  if int(total[1]) ~= before[1] or int(total[2]) ~= before[2] or int(total[3]) ~= before[3] then
    redis.call('HSET', KEYS[3], 't-cpu', int(total[1]), 't-mem', int(total[2]), 't-disk', int(total[3]))
  end
  local short = shortfall(k, t)
  if short then return short end

  if under_way then
    local keys = { job = KEYS[12], lane = KEYS[13], delayed = KEYS[8], done = KEYS[9], counters = KEYS[10], control = KEYS[11] }
    local state = cancel_one(keys, ARGV[11], ARGV[12], ARGV[13], ARGV[10])
    if state == 'moved' then return { 'moved' } end
    if state ~= 'unknown' then superseded = ARGV[11] end
  end
  redis.call('SET', KEYS[5], ARGV[1], 'EXAT', ARGV[3])
  put_task(k, t)
  redis.call('HSET', KEYS[1], 'nonce', ARGV[2])
  append_events(KEYS[6], ARGV, at)

  at = at + 1 + tonumber(ARGV[at])
  local lanes = tonumber(ARGV[at])
  for i = 1, lanes do make_lane(KEYS[13 + i]) end
  local a = at + lanes + 1
  for i = 14 + lanes, #KEYS do
    local home = tonumber(ARGV[a+1])
    local state = redis.call('HGET', KEYS[i], 'st')
    -- A job that ended is asked for anew: it was signed for anew.
    if ended(state) then redis.call('DEL', KEYS[i]) end
    if not state or ended(state) then
      local lane = ARGV[at + home]
      redis.call('SADD', KEYS[7], string.match(lane, '^(.*):'))
      submit_one(KEYS[i], KEYS[13 + home],
        { id = ARGV[a], lane = lane, max = ARGV[a+2], payload = ARGV[a+3] })
    end
    a = a + 4
  end
  return { 'accepted', superseded }
end
