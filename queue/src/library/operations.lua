-- Signed operations: a job for each nonce.

-- KEYS: shared, nonce, then queues, lanes, jobs.  ARGV: digest, expiry of the nonce (s), then the same
local function operate(KEYS, ARGV)
  local s, nonce = shared(KEYS), KEYS[SHARED + 1]
  local used = redis.call('GET', nonce)
  if used then return used == ARGV[1] and 'same' or 'replayed' end
  redis.call('SET', nonce, ARGV[1], 'EXAT', ARGV[2])
  submit_jobs(s, KEYS, SHARED + 2, ARGV, 3, false)
  settle(s)
  return 'accepted'
end
