-- Runners, and what operators set.

-- What a runner adds to the load: `SLOTS QUEUE,QUEUE,…`; n: 1 when it comes, -1 when it goes.
local function add_service(s, service, n)
  local slots, queues = string.match(service, '^(%d+) (.*)$')
  for queue in string.gmatch(queues, '[^,]+') do add_slots(s, queue, n * tonumber(slots)) end
end

-- A runner begins. KEYS: shared, runners, what they serve, then the ready lanes of its queues
-- ARGV: name, ms that it counts as alive, what it serves, queues.  Reply: where control stands
local function open(KEYS, ARGV)
  local s = shared(KEYS)
  local runners, services = KEYS[SHARED+1], KEYS[SHARED+2]
  for i = 4, #ARGV do
    make_lane(s, ARGV[i] .. ':r', KEYS[SHARED+2+i-3])
    redis.call('SADD', s.queues, ARGV[i])
  end
  redis.call('ZADD', runners, int(s.at + tonumber(ARGV[2])), ARGV[1])
  if redis.call('HSETNX', services, ARGV[1], ARGV[3]) == 1 then add_service(s, ARGV[3], 1) end
  local last = redis.call('XREVRANGE', s.control, '+', '-', 'COUNT', 1)
  return last[1] and last[1][1] or '0-0'
end

-- KEYS: shared, runners, what they serve.  ARGV: name, ms that it counts as alive, what it serves
-- Reply: 1, or 0 when it was given up meanwhile
local function beat(KEYS, ARGV)
  local s = shared(KEYS)
  redis.call('ZADD', KEYS[SHARED+1], int(s.at + tonumber(ARGV[2])), ARGV[1])
  if redis.call('HSETNX', KEYS[SHARED+2], ARGV[1], ARGV[3]) == 0 then return 1 end
  add_service(s, ARGV[3], 1)
  return 0
end

-- KEYS: runners.  Reply: those whose heartbeat is missing
local function silent(KEYS)
  return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', int(now()), 'LIMIT', 0, 256)
end

-- A runner is given up: it learns so in case it lives. KEYS: shared, runners, what they serve.
-- ARGV: name
local function give_up(KEYS, ARGV)
  local s = shared(KEYS)
  local service = redis.call('HGET', KEYS[SHARED+2], ARGV[1])
  if service then add_service(s, service, -1) end
  redis.call('ZREM', KEYS[SHARED+1], ARGV[1])
  redis.call('HDEL', KEYS[SHARED+2], ARGV[1])
  tell(s, 'k', 'lost', 'w', ARGV[1])
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

-- Forgets lanes of accounts in which nothing is, and nothing was lately: an id of an entry must never
-- come twice. KEYS: shared, lanes.  ARGV: ms, then their names.  Reply: how many
local function tidy(KEYS, ARGV)
  local s = shared(KEYS)
  local gone = 0
  for i = 2, #ARGV do
    local lane = KEYS[SHARED+i-1]
    if redis.call('EXISTS', lane) == 0 then
      redis.call('SREM', s.lanes, ARGV[i])
    elseif redis.call('XLEN', lane) == 0 then
      local info = redis.call('XINFO', 'STREAM', lane)
      local last = '0'
      for f = 1, #info, 2 do if info[f] == 'last-generated-id' then last = info[f+1] end end
      if s.at - tonumber(string.match(last, '^%d+')) > tonumber(ARGV[1]) then
        redis.call('DEL', lane)
        redis.call('SREM', s.lanes, ARGV[i])
        free_number(s, ARGV[i])
        gone = gone + 1
      end
    end
  end
  return gone
end

-- Sets or removes what operators set. KEYS: shared.  ARGV: field, value ('' for none)
local function set(KEYS, ARGV)
  local s = shared(KEYS)
  if ARGV[2] == '' then redis.call('HDEL', s.settings, ARGV[1])
  else redis.call('HSET', s.settings, ARGV[1], ARGV[2]) end
  if string.sub(ARGV[1], 1, 2) == 'l ' then
    redis.call('HDEL', s.settings, 'limited')
    for _, field in ipairs(redis.call('HKEYS', s.settings)) do
      if string.sub(field, 1, 2) == 'l ' then redis.call('HSET', s.settings, 'limited', 1) end
    end
  end
  tell(s, 'k', 'settings')
  return 'ok'
end

-- What stands ready in a queue that was stopped waits in lanes instead. KEYS: shared, queues, lanes, a
-- record per entry.  ARGV: queues, lanes, then per entry of the ready lane: place of its lane, entry
-- Reply: how many were moved
local function shelve(KEYS, ARGV)
  local s = shared(KEYS)
  local _, homes, k, a = places_at(KEYS, SHARED + 1, ARGV, 1)
  local moved = 0
  while a <= #ARGV do
    local home, entry, record = homes[tonumber(ARGV[a])], ARGV[a+1], KEYS[k]
    local q = home.queue
    local e = redis.call('XRANGE', q.ready, entry, entry)
    local there, its = place_in(s, redis.call('GET', record) or '')
    local here = there == q.name .. ':r' and its == entry
    if is_stopped(s, q) and here and e[1] and #redis.call('XPENDING', q.ready, GROUP, entry, entry, 1) == 0 then
      redis.call('XDEL', q.ready, entry)
      local name, new = put(s, q, home, with_attempts(e[1][2][2], attempts_of(e[1][2][2])), true)
      redis.call('SET', record, record_at(s, name, new))
      moved = moved + 1
    end
    k = k + 1
    a = a + 2
  end
  return moved
end
