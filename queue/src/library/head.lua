-- What all functions share. Times are the server's, in milliseconds; payloads are opaque.
-- Rules: every key is declared; check first, then change; at most 256 items a call; a call that is
-- repeated by the same attempt answers as it did and changes nothing.

local GROUP = 'g'
local RECORD_TTL = 3600      -- seconds that an ended job is remembered
local OUTPUT_TTL = 3600      -- seconds after the last thing that was printed
local OUTPUT_KEPT = 10000    -- pieces of output per job
local EVENTS_KEPT = 100000
local DONE_KEPT = 10000
local DEAD_KEPT = 10000
local CONTROL_KEPT = 10000
local TOMBSTONE_TTL = 31 * 24 * 3600  -- longer than any envelope is valid

local function int(x) return string.format('%.0f', x) end

local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Makes a lane: a stream with its group.
local function make_lane(lane)
  if redis.call('EXISTS', lane) == 0 then
    redis.call('XGROUP', 'CREATE', lane, GROUP, '0', 'MKSTREAM')
  end
end

-- Whether `owner` holds the entry, in the delivery that it was given.
local function holds(lane, entry, owner)
  local p = redis.pcall('XPENDING', lane, GROUP, entry, entry, 1, owner)
  return not p.err and #p == 1 and p[1][4] == 1, p
end

local function read_entry(lane, entry)
  local e = redis.call('XRANGE', lane, entry, entry)
  if #e == 0 then return nil end
  local f = e[1][2]
  return { id = f[2], before = tonumber(f[4]), payload = f[6] }
end

-- The lease of `owner` on an entry; nil when it is lost.
local function read_lease(lane, entry, owner)
  local held, p = holds(lane, entry, owner)
  if not held then return nil end
  local l = read_entry(lane, entry)
  if not l then return nil end
  l.attempt = l.before + 1
  l.begun = now() - p[1][3]
  l.entry = entry
  l.owner = owner
  return l
end

local function drop_entry(lane, entry)
  redis.call('XACK', lane, GROUP, entry)
  redis.call('XDEL', lane, entry)
end

local function enqueue(lane, id, attempts, payload)
  return redis.call('XADD', lane, '*', 'i', id, 'a', attempts, 'j', payload)
end

-- Ends a job: its record, the news, the counters, the dead letter.
-- k: job, done, counters, dead (only for dead letters). by: the lease, if it had one.
local function conclude(k, id, queue, state, outcome, attempts, payload, by)
  redis.call('HSET', k.job, 'st', state, 'o', outcome, 'e', int(now()), 'a', attempts, 'j', payload)
  if by then redis.call('HSET', k.job, 'b', int(by.begun)) end
  redis.call('EXPIRE', k.job, RECORD_TTL)
  redis.call('XADD', k.done, 'MAXLEN', '~', DONE_KEPT, '*', 'i', id)
  redis.call('HINCRBY', k.counters, queue .. ' ' .. state, 1)
  if k.dead then
    redis.call('XADD', k.dead, 'MAXLEN', '~', DEAD_KEPT, '*', 'i', id, 'o', outcome, 'j', payload)
  end
end

local function ended(state)
  return state and state ~= 'queued' and state ~= 'delayed'
end

-- The holder of a lease ended its attempt itself.
local function sign(job, by)
  redis.call('HSET', job, 'ls', by.entry, 'lo', by.owner)
end

-- Whether this lease's end was already written by its holder, who asks again because it heard no
-- answer. Second: the state.
local function concluded_by(job, entry, owner)
  local r = redis.call('HMGET', job, 'ls', 'lo', 'st')
  return r[1] == entry and r[2] == owner, r[3]
end

-- Whether the n-th write of this lease was already made.
local function repeated(job, entry, n)
  local r = redis.call('HMGET', job, 'us', 'un')
  return r[1] == entry and tonumber(r[2]) >= tonumber(n)
end

local function note_write(job, entry, n)
  redis.call('HSET', job, 'us', entry, 'un', n)
end

-- Appends the events that stand in `args` from `at`: their number, then each.
local function append_events(stream, args, at)
  for i = at + 1, at + tonumber(args[at]) do
    redis.call('XADD', stream, 'MAXLEN', '~', EVENTS_KEPT, '*', 'e', args[i])
  end
end
