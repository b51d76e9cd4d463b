-- Who may start.
--
-- A runner that is idle blocks on the ready lane of its queues. What comes goes there while it holds
-- less than the runners' slots; so it is short, and whoever floods a queue waits in lanes of its own:
-- QUEUE:ACCOUNT:0 for what was under way already, 1 to 3 by priority. From those a runner with a free
-- slot takes, account by account in turn. An account with limits never goes to the ready lane.
--
-- No count is kept that the lanes' groups know. Kept are the load, a hash: `s QUEUE` slots of its
-- runners; and the settings, a hash: `m QUEUE` its mode when it is not running, `n QUEUE` its scale,
-- `l ACCOUNT` and `l *` limits, `limited` when there are any.

-- Slots more, or fewer.
local function add_slots(s, queue, n)
  if redis.call('HINCRBY', s.load, 's ' .. queue, n) <= 0 then redis.call('HDEL', s.load, 's ' .. queue) end
end

local function count(s, queue, account, state, n)
  local field = queue .. ' ' .. account .. ' ' .. state
  s.counts[field] = (s.counts[field] or 0) + n
end

-- Writes what a call has counted.
local function settle(s)
  for field, n in pairs(s.counts) do
    if n ~= 0 then redis.call('HINCRBY', s.counters, field, n) end
  end
end

local function is_limited(s)
  if s.limited == nil then s.limited = redis.call('HEXISTS', s.settings, 'limited') == 1 end
  return s.limited
end

-- Something may start that could not before, and runners would not look by themselves.
local function wake(s)
  if s.told then return end
  s.told = true
  tell(s, 'k', 'look')
end

-- The jobs of an account that run, by its lanes: one with limits is never in another.
local function running(lanes)
  local n = 0
  for _, lane in ipairs(lanes) do
    if redis.call('EXISTS', lane) == 1 then n = n + redis.call('XPENDING', lane, GROUP)[1] end
  end
  return n
end

-- The limits of an account: concurrency, rate per second, burst. The node itself has none.
local function limits_of(s, account)
  if account == '0' or not is_limited(s) then return nil end
  local known = s.limits[account]
  if known == nil then
    local r = redis.call('HMGET', s.settings, 'l ' .. account, 'l *')
    known = false
    if r[1] or r[2] then
      local c, rate, burst = string.match(r[1] or r[2], '^(%S+) (%S+) (%S+)$')
      known = { concurrency = tonumber(c), rate = tonumber(rate), burst = tonumber(burst) or 1 }
    end
    s.limits[account] = known
  end
  return known or nil
end

-- Of `want` jobs of an account, how many may start now. Second: in how many ms one more may.
local function allowance(s, queue, account, lanes, want)
  local limits = limits_of(s, account)
  if not limits then return want end
  local n = want
  if limits.concurrency then n = math.min(n, limits.concurrency - running(lanes)) end
  if n <= 0 then return 0 end
  if limits.rate then
    -- Generic cell rate algorithm: the time at which the bucket is full again tells how much is in it.
    local gap = 1000 / limits.rate
    local full = tonumber(redis.call('HGET', s.tokens, queue .. ' ' .. account) or 0)
    local behind = math.max(full - s.at, 0)
    n = math.min(n, math.floor(limits.burst - behind / gap + 1e-9))
    if n <= 0 then return 0, math.ceil(behind - gap * (limits.burst - 1)) end
  end
  return n
end

local function spend(s, queue, account, n)
  local limits = limits_of(s, account)
  if n == 0 or not limits or not limits.rate then return end
  local field = queue .. ' ' .. account
  local full = math.max(tonumber(redis.call('HGET', s.tokens, field) or 0), s.at)
  redis.call('HSET', s.tokens, field, string.format('%.3f', full + n * 1000 / limits.rate))
end

local function is_stopped(s, q)
  if q.stopped == nil then q.stopped = redis.call('HEXISTS', s.settings, 'm ' .. q.name) == 1 end
  return q.stopped
end

-- Whether the account already waits for its turn.
local function waits(q, account)
  if q.joined[account] == nil then
    q.joined[account] = redis.call('ZSCORE', q.turns, account) and true or false
  end
  return q.joined[account]
end

-- The account waits for its turn: after those that had as much as it will have had.
local function join(q, account)
  if waits(q, account) then return end
  local first = redis.call('ZRANGE', q.turns, 0, 0, 'WITHSCORES')
  redis.call('ZADD', q.turns, first[2] or 0, account)
  q.joined[account] = true
end

-- The name and the keys of a queue.
local function queue_at(KEYS, k, name)
  return { name = name, ready = KEYS[k], turns = KEYS[k+1], joined = {} }
end

-- A lane of an account.
local function home_at(key, name)
  return { key = key, name = name, account = string.match(name, ':(%d+):%d$') }
end

-- How many more the ready lane takes.
local function room(s, q)
  if not q.room then
    local slots = tonumber(redis.call('HGET', s.load, 's ' .. q.name) or 0)
    q.room = is_stopped(s, q) and 0 or slots - redis.call('XLEN', q.ready)
  end
  return q.room
end

-- An entry of a lane goes; if it is the ready lane there is room for one more.
local function drop_entry(lane, entry, q)
  redis.call('XACK', lane, GROUP, entry)
  redis.call('XDEL', lane, entry)
  if q and q.room and lane == q.ready then q.room = q.room + 1 end
end

-- Puts a job where it waits to be claimed: where idle runners block, if there is room and the account
-- has no other waiting, else in its lane. Where: the lane's name, and the entry.
local function put(s, q, home, value, under_way)
  local account = home.account
  local limited = limits_of(s, account)
  if room(s, q) > 0 and not limited and (under_way or not waits(q, account)) then
    q.room = q.room - 1
    if not q.made then
      make_lane(s, q.name .. ':r', q.ready)
      q.made = true
    end
    return q.name .. ':r', redis.call('XADD', q.ready, '*', 'j', value, 'a', account)
  end
  join(q, account)
  if limited then wake(s) end
  if not home.made then
    make_lane(s, home.name, home.key)
    home.made = true
  end
  return home.name, redis.call('XADD', home.key, '*', 'j', value)
end
