-- What all functions share. Times are the server's, in milliseconds; payloads are opaque.
-- Rules: every key is declared; check first, then change; at most 256 items a call; a call that is
-- repeated by the same attempt answers as it did and changes nothing.

local GROUP = 'g'
-- Numbers that are only passed on are text: redis-server would write each anew at every call.
local RECORD_TTL = '3600'    -- seconds that an ended job is remembered
local DEAD_TTL = 7 * 24 * 3600  -- that of a dead letter
local LONG_TTL = 31 * 24 * 3600 -- longer than any envelope is valid
local OUTPUT_TTL = 3600      -- seconds after the last thing that was printed
local OUTPUT_KEPT = 10000    -- pieces of output per job
local EVENTS_KEPT = 100000
local DONE_KEPT = 2000        -- entries, of up to 256 ids
local DEAD_KEPT = 10000
local CONTROL_KEPT = 10000
local ATTEMPTS_KEPT = 64     -- of a job's history

local function int(x) return string.format('%.0f', x) end

local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- The keys that most functions may touch, from KEYS[1] on.
local SHARED = 13
local function shared(KEYS)
  return {
    counters = KEYS[1], done = KEYS[2], load = KEYS[3], settings = KEYS[4], tokens = KEYS[5],
    delayed = KEYS[6], waited = KEYS[7], releases = KEYS[8], unique = KEYS[9], control = KEYS[10],
    lanes = KEYS[11], queues = KEYS[12], numbers = KEYS[13],
    at = now(), counts = {}, limits = {}, known_numbers = {},
  }
end

-- What stands in an entry of a lane: attempts that counted (2 bytes; the highest bit says that it was
-- in another place before, so that more is known of the job), id (16 bytes), payload.
local HEADER, MOVED = 18, 32768
local function attempts_of(value) return struct.unpack('>H', value) % MOVED end
local function with_attempts(value, n) return struct.pack('>H', MOVED + math.min(n, MOVED - 1)) .. string.sub(value, 3) end
local function payload_of(value) return string.sub(value, HEADER + 1) end

-- Makes a lane: a stream with its group.
local function make_lane(s, name, key)
  if redis.call('EXISTS', key) == 0 then
    redis.call('XGROUP', 'CREATE', key, GROUP, '0', 'MKSTREAM')
    redis.call('SADD', s.lanes, name)
  end
end

-- A record says where its job is as `q LANE ENTRY`, or as one number: 3 digits for the lane, 13 of the
-- entry's time, up to 3 of its number there. redis-server keeps a number in 16 bytes, a text of that
-- length in 56; and the record of an ended job takes such 16 bytes, too. So a job that ends leaves no
-- hole in the heap; after a restart, when records lie in no order, new ones had to fill such holes one
-- by one.
--
-- A hash has the number of a lane under its name, and the name under the number; under `+` the highest
-- number so far, under `-` those that are free again.
local FIRST_NUMBER, LAST_NUMBER = 100, 921 -- so that all fits into 63 bits

local function new_number(s, name)
  local number, rest = string.match(redis.call('HGET', s.numbers, '-') or '', '^(%d+) (.*)$')
  if number then
    redis.call('HSET', s.numbers, '-', rest)
  else
    local next_one = (redis.call('HGET', s.numbers, '+') or FIRST_NUMBER - 1) + 1
    if next_one > LAST_NUMBER then return false end
    number = int(next_one)
    redis.call('HSET', s.numbers, '+', number)
  end
  redis.call('HSET', s.numbers, name, number, number, name)
  return number
end

local function number_of(s, name)
  local number = s.known_numbers[name]
  if number == nil then
    number = redis.call('HGET', s.numbers, name) or new_number(s, name)
    s.known_numbers[name] = number
  end
  return number
end

-- No record names the lane any more.
local function free_number(s, name)
  local number = redis.call('HGET', s.numbers, name)
  if not number then return end
  redis.call('HDEL', s.numbers, name, number)
  redis.call('HSET', s.numbers, '-', (redis.call('HGET', s.numbers, '-') or '') .. number .. ' ')
end

-- The record of a job that is in a lane.
local function record_at(s, lane, entry)
  local sub = string.sub
  local number = number_of(s, lane)
  if not number or #entry > 17 or string.byte(entry, 14) ~= 45 then return 'q ' .. lane .. ' ' .. entry end
  return number .. sub(entry, 1, 13) .. sub(entry, 15)
end

-- The lane and the entry in a record; nil when the job is in none.
local function place_in(s, record)
  local lane, entry = string.match(record, '^q (%S+) (%S+)$')
  if lane then return lane, entry end
  if not string.match(record, '^%d+$') then return nil end
  lane = redis.call('HGET', s.numbers, string.sub(record, 1, 3))
  if lane then return lane, string.sub(record, 4, 16) .. '-' .. string.sub(record, 17) end
end

-- Whether `owner` holds the entry, in the delivery that it was given. Second: since when, in ms.
local function holds(lane, entry, owner)
  local p = redis.pcall('XPENDING', lane, GROUP, entry, entry, 1, owner)
  if p.err or #p ~= 1 or p[1][4] ~= 1 then return false end
  return true, p[1][3]
end

local function read_entry(lane, entry)
  local e = redis.call('XRANGE', lane, entry, entry)
  return e[1] and e[1][2][2]
end

-- The lease of `owner` on an entry; nil when it is lost.
local function read_lease(s, lane, entry, owner)
  local held, idle = holds(lane, entry, owner)
  if not held then return nil end
  local value = read_entry(lane, entry)
  if not value then return nil end
  local before = attempts_of(value)
  return { entry = entry, owner = owner, value = value, before = before, attempt = before + 1, begun = s.at - idle }
end

-- Appends the events that stand in `args` from `at`: their number, then each.
local function append_events(stream, args, at)
  for i = at + 1, at + tonumber(args[at]) do
    redis.call('XADD', stream, 'MAXLEN', '~', EVENTS_KEPT, '*', 'e', args[i])
  end
end

local function tell(s, ...)
  redis.call('XADD', s.control, 'MAXLEN', '~', CONTROL_KEPT, '*', ...)
end
