-- Who may start. The load is a hash: `s QUEUE` slots of its runners, `h QUEUE` and `h QUEUE ACCOUNT`
-- jobs that hold a place: they run, or stand in the ready lane. The settings are a hash: `m QUEUE`
-- its mode when it is not running, `n QUEUE` its scale, `l ACCOUNT` and `l *` limits, `limited`.
--
-- The rule: what holds a place is never more than the slots, as far as submitting decides it. So the
-- ready lane, on which idle runners block, is short, and whoever floods a queue waits in lanes of its
-- own. A runner with a free slot takes from those, account by account in turn.

-- A number of the load, as it is by now. Read once a call, written back once.
local function load_of(s, field)
  local was = s.was[field]
  if not was then
    was = tonumber(redis.call('HGET', s.load, field) or 0)
    s.was[field] = was
  end
  return was + (s.by[field] or 0)
end

local function add_load(s, field, n) s.by[field] = (s.by[field] or 0) + n end

local function is_limited(s)
  if s.limited == nil then s.limited = redis.call('HEXISTS', s.settings, 'limited') == 1 end
  return s.limited
end

-- n more jobs of an account hold a place, or fewer.
local function hold(s, queue, account, n)
  add_load(s, 'h ' .. queue, n)
  add_load(s, 'h ' .. queue .. ' ' .. account, n)
  -- An account that waited for a place of its own may have one now, and no runner else would look.
  if n < 0 and not s.told and is_limited(s) then
    s.told = true
    tell(s, 'k', 'look')
  end
end

local function count(s, queue, account, state, n)
  local field = queue .. ' ' .. account .. ' ' .. state
  s.counts[field] = (s.counts[field] or 0) + n
end

-- Writes what a call has noted.
local function settle(s)
  for field, n in pairs(s.by) do
    if n ~= 0 and redis.call('HINCRBY', s.load, field, n) == 0 then redis.call('HDEL', s.load, field) end
  end
  for field, n in pairs(s.counts) do
    if n ~= 0 then redis.call('HINCRBY', s.counters, field, n) end
  end
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
local function allowance(s, queue, account, want)
  local limits = limits_of(s, account)
  if not limits then return want end
  local n = want
  if limits.concurrency then
    n = math.min(n, limits.concurrency - load_of(s, 'h ' .. queue .. ' ' .. account))
  end
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

-- The names and keys of a queue: its ready lane, its front lane and the turns.
local function queue_at(KEYS, k, name)
  return { name = name, ready = KEYS[k], front = KEYS[k+1], turns = KEYS[k+2], joined = {} }
end

-- The lane of an account at a priority: QUEUE:ACCOUNT:PRIORITY.
local function home_at(key, name)
  return { key = key, name = name, account = string.match(name, ':(%d+):%d$') }
end

-- Adds to the ready lane or to the front: their entries say whose they are.
local function enter(s, name, key, value, account)
  if not s[name] then
    make_lane(s, name, key)
    s[name] = true
  end
  return redis.call('XADD', key, '*', 'j', value, 'a', account)
end

-- Puts a job where it waits to be claimed: ready when there is room, else in the account's lane, or
-- in front of all when it was under way already. Where: the lane's name, and the entry.
local function put(s, q, home, value, under_way)
  local account = home.account
  local room = not is_stopped(s, q) and load_of(s, 's ' .. q.name) > load_of(s, 'h ' .. q.name)
  if room and not under_way then
    room = not waits(q, account) and allowance(s, q.name, account, 1) == 1
  end
  if room then
    hold(s, q.name, account, 1)
    if not under_way then spend(s, q.name, account, 1) end
    return q.name .. ':r', enter(s, q.name .. ':r', q.ready, value, account)
  end
  if under_way then return q.name .. ':f', enter(s, q.name .. ':f', q.front, value, account) end
  join(q, account)
  if not s[home.name] then
    make_lane(s, home.name, home.key)
    s[home.name] = true
  end
  return home.name, redis.call('XADD', home.key, '*', 'j', value)
end
