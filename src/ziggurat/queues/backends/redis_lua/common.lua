-- What all scripts share: the map of the keys, and the moves of a message between its states.
--
-- Every key starts with KEYS[1], "{prefix}". The braces put all keys of a queue into one slot of a Cluster, so that a batch over several
-- lanes, an outcome with the end of its message, and a limit over all workers are each one atomic script.
--
-- A line is a lane with the limits of its messages, each part percent-encoded:
--     queue/priority/namespace/region                                    messages without limits
--     queue/priority/namespace/region/key/limit/key/per_second/burst     with a concurrency key, a rate, or both ("" for the other)
--
--   :stream:LINE     stream   i = message id, b = message as JSON. Group "workers". An entry stays until its message is settled, so
--                             XLEN = ready + leased (+ released for later). Deleted with its group when it is empty.
--                             Pending under a worker: leased; idle = since the last renewal; times delivered = the epoch.
--                             Pending under ":ready": given back, served before entries that were never read.
--                             Pending under ":later": released with a delay.
--   :lines           zset     all lines that have a stream, in the order of their names.
--   :ids             hash     message id -> "LINE ENTRY", or "LINE -" while it is delayed and in no stream yet. Dedupes, finds.
--   :later           hash     message id -> JSON of such a delayed message.
--   :delayed:QUEUE   zset     message id -> when it is due, ms.
--   :lanes           hash     lane -> messages it holds, for its bound.
--   :levels:Q/R      set      priorities of queue Q and region R that may have ready messages.
--   :ring:Q/R/P      zset     namespaces of that level -> the turn at which each was served last.
--   :heads:Q/R/P/NS  zset     lines of that namespace that may have ready messages -> number of the oldest.
--   :turns           hash     view of a kind of receiver -> credits of its levels.
--   :slots:KEY       set      ids of the attempts that run under a concurrency key.    :parked:KEY  set  lines that wait for a slot.
--   :bucket:KEY      hash     tokens, at: a rate's bucket. Expires when full.          :resume      zset lines -> when to look again, ms.
--   :beats           hash     message id -> last heartbeat details, JSON.
--   :shifts          hash     message id -> "A B": A epochs before a redrive, B deliveries that do not count (handed back unstarted).
--   :told            hash     id of a cancelled leased message -> worker.              :cancelled:WORKER  set  ids it has yet to hear of.
--   :outcomes        stream   i, o = outcome as JSON; or of a dead message i, b, r, d, w, h, t. Group "orchestrator".
--   :held            hash     message id -> "OUTCOME_ENTRY STATUS CALL" of an unacknowledged outcome; CALL names the settle that made it.
--   :dead:QUEUE      stream   i, b, l = line, r = reason, d = deliveries, w = worker, e = epoch, h = heartbeat, t = when, ms.
--   :deadids         hash     message id -> "QUEUE ENTRY".
--   :progress        list     batches of progress, capped, short-lived.
--   :idle:TOPIC      zset     tokens of calls that wait -> since when, ms. Topics: "w:Q/R", "o", "p", "c:WORKER". A token is CLIENT.NUMBER,
--                             and a wake is published on the channel :wake:CLIENT, one waiting call for one message.
--   :presences       hash     worker -> "UNTIL SEEN BODY", ms and JSON. Expires with the last of them.
--   :queues          set      names of queues that were ever used.
--   :meta            hash     seq, ms: number and time of the newest entry; turn; when and up to where leases were last looked at.
--
-- Time is the server's. Entry ids are MS-SEQ with a number that never repeats, so an id names one life of a message, even if its
-- stream is deleted and made again within a millisecond or the server's clock steps back.

local base = KEYS[1]
local call, pcall_, match, concat = redis.call, redis.pcall, string.match, table.concat
local GROUP, READY, LATER = 'workers', ':ready', ':later'
local time = call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
-- Redis takes some thousand arguments from unpack at most.
local CHUNK = 1000

local function key(name) return base .. ':' .. name end

local function stream_of(line) return base .. ':stream:' .. line end

-- Calls a command with a list of any length as its last arguments, in chunks.
local function call_many(list, ...)
  local head = {...}
  local fixed = #head
  for start = 1, #list, CHUNK do
    local arguments = {unpack(head)}
    for i = start, math.min(start + CHUNK - 1, #list) do arguments[fixed + i - start + 1] = list[i] end
    call(unpack(arguments))
  end
end

-- Returns the values of the fields of a hash: one call for all of them.
local function get_many(hash, fields)
  if #fields == 0 or call('EXISTS', hash) == 0 then return {} end
  if #fields <= CHUNK then return call('HMGET', hash, unpack(fields)) end
  local values = {}
  for start = 1, #fields, CHUNK do
    local last = math.min(start + CHUNK - 1, #fields)
    local some = call('HMGET', hash, unpack(fields, start, last))
    for i = 1, last - start + 1 do values[start + i - 1] = some[i] end
  end
  return values
end

local function place_of(line) return match(line, '^([^/]*)/([^/]*)/([^/]*)/([^/]*)') end

local function lane_of(line) return match(line, '^[^/]*/[^/]*/[^/]*/[^/]*') end

local function seq_of(entry) return tonumber(match(entry, '-(%d+)$')) end

local function limits_of(line)
  return match(line, '^[^/]*/[^/]*/[^/]*/[^/]*/([^/]*)/([^/]*)/([^/]*)/([^/]*)/([^/]*)$')
end

-- Wakes up to `number` calls that wait for a topic, those that wait longest first. A token whose client is gone reaches nobody and is
-- dropped; so a wake is never lost on the dead.
local function wake(topic, number)
  local idle = base .. ':idle:' .. topic
  while number > 0 do
    local token = call('ZPOPMIN', idle)[1]
    if not token then return end
    if call('SPUBLISH', base .. ':wake:' .. match(token, '^[^.]*'), topic .. ' ' .. token) > 0 then number = number - 1 end
  end
end

-- Notes that a call waits for a topic. Those of clients that died are swept with the old ones.
local function idle(topic, token)
  local waiting = base .. ':idle:' .. topic
  call('ZADD', waiting, now, token)
  call('ZREMRANGEBYSCORE', waiting, '-inf', now - 60000)
  call('PEXPIRE', waiting, 120000)
end

local function wake_line(line, number)
  local queue, _, _, region = place_of(line)
  wake('w:' .. queue .. '/' .. region, number)
end

-- Lists a line as one that may have ready messages, the oldest of them with this number.
local function activate(line, seq)
  local queue, priority, namespace, region = place_of(line)
  local shelf = queue .. '/' .. region
  if call('ZADD', base .. ':heads:' .. shelf .. '/' .. priority .. '/' .. namespace, 'LT', seq, line) == 1 then
    -- One that comes back joins behind those that stayed: absence earns no credit.
    local turn = call('HGET', key('meta'), 'turn') or 0
    call('ZADD', base .. ':ring:' .. shelf .. '/' .. priority, 'NX', turn, namespace)
    call('SADD', base .. ':levels:' .. shelf, priority)
  end
end

local function deactivate(line)
  local queue, priority, namespace, region = place_of(line)
  local shelf = queue .. '/' .. region
  local heads, ring = base .. ':heads:' .. shelf .. '/' .. priority .. '/' .. namespace, base .. ':ring:' .. shelf .. '/' .. priority
  call('ZREM', heads, line)
  if call('EXISTS', heads) == 0 then
    call('ZREM', ring, namespace)
    if call('EXISTS', ring) == 0 then call('SREM', base .. ':levels:' .. shelf, priority) end
  end
end

-- Makes a line's stream and group, if they are missing. From 0: what is in the stream before the group is made is work too.
local function ensure(line)
  local stream = stream_of(line)
  if call('EXISTS', stream) == 0 then
    call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
    call('ZADD', key('lines'), 0, line)
    call('SADD', key('queues'), (place_of(line)))
  end
end

local function drop_if_empty(line)
  if call('XLEN', stream_of(line)) == 0 then
    call('DEL', stream_of(line))
    call('ZREM', key('lines'), line)
    deactivate(line)
  end
end

-- Takes entries off a line's stream. XACKDEL deletes only those that are leased or were.
local function retire(line, entries, waiting)
  local stream = stream_of(line)
  if HAS_XACKDEL and not waiting then
    for start = 1, #entries, CHUNK do
      local last = math.min(start + CHUNK - 1, #entries)
      call('XACKDEL', stream, GROUP, 'DELREF', 'IDS', last - start + 1, unpack(entries, start, last))
    end
  else
    call_many(entries, 'XACK', stream, GROUP)
    call_many(entries, 'XDEL', stream)
  end
  drop_if_empty(line)
end

local function count_lane(lane, change)
  if call('HINCRBY', key('lanes'), lane, change) <= 0 then call('HDEL', key('lanes'), lane) end
end

-- Reserves entry ids; returns the function that gives the next one.
local function numbers(count)
  local meta = key('meta')
  local seq = call('HINCRBY', meta, 'seq', count) - count
  local ms = tonumber(call('HGET', meta, 'ms') or 0)
  if now > ms then
    ms = now
    call('HSET', meta, 'ms', ms)
  end
  return function()
    seq = seq + 1
    return ms .. '-' .. seq
  end
end

-- Puts a message that has just become ready at the end of its line.
local function append(line, id, body, entry)
  call('XADD', stream_of(line), entry, 'i', id, 'b', body)
  call('HSET', key('ids'), id, line .. ' ' .. entry)
end

-- Returns the entry of the oldest ready message of a line, or nil. `last` is the newest entry that was ever read, if known.
local function head_of(line, last)
  local stream = stream_of(line)
  local back = pcall_('XPENDING', stream, GROUP, '-', '+', 1, READY)
  if back.err then return nil end
  if back[1] then return back[1][1] end
  if not last then
    local group = call('XINFO', 'GROUPS', stream)[1]
    for i = 1, #group, 2 do
      if group[i] == 'last-delivered-id' then last = group[i + 1] end
    end
  end
  local first = call('XRANGE', stream, '(' .. last, '+', 'COUNT', 1)[1]
  return first and first[1]
end

-- Frees the slot of an attempt that is over, and lets the lines that waited for it go on.
local function free_slot(line, id)
  local name, limit = limits_of(line)
  if not name or limit == '' then return end
  if call('SREM', base .. ':slots:' .. name, id) == 0 then return end
  local parked = base .. ':parked:' .. name
  if call('EXISTS', parked) == 0 then return end
  for _, waiting in ipairs(call('SMEMBERS', parked)) do
    local head = head_of(waiting)
    if head then
      activate(waiting, seq_of(head))
      wake_line(waiting, 1)
    end
  end
  call('DEL', parked)
end

local function tokens_of(name, per_second, burst, at)
  local bucket = call('HMGET', base .. ':bucket:' .. name, 'tokens', 'at')
  if not bucket[1] then return burst end
  return math.min(burst, tonumber(bucket[1]) + math.max(0, at - tonumber(bucket[2])) * per_second)
end

local function keep_tokens(name, per_second, burst, at, tokens)
  local bucket = base .. ':bucket:' .. name
  call('HSET', bucket, 'tokens', string.format('%.9f', tokens), 'at', string.format('%.6f', at))
  -- A full bucket says nothing that an absent one does not.
  if per_second > 0 then call('PEXPIRE', bucket, math.ceil((burst - tokens) / per_second * 1000) + 1) end
end

local function rate_of(line)
  local _, _, name, per_second, burst = limits_of(line)
  if not name or per_second == '' then return nil end
  return name, tonumber(per_second), tonumber(burst), tonumber(time[1]) + tonumber(time[2]) / 1e6
end

-- Forgets what is kept of messages beside their entries.
local function forget(ids)
  call_many(ids, 'HDEL', key('ids'))
  for _, name in ipairs({'beats', 'shifts'}) do
    if call('EXISTS', key(name)) == 1 then call_many(ids, 'HDEL', key(name)) end
  end
  if call('EXISTS', key('told')) == 1 then
    local workers = get_many(key('told'), ids)
    for i, id in ipairs(ids) do
      if workers[i] then call('SREM', base .. ':cancelled:' .. workers[i], id) end
    end
    call_many(ids, 'HDEL', key('told'))
  end
end

-- Returns how many epochs came before a redrive, and how many deliveries do not count.
local function shift_of(id)
  local shift = call('HGET', key('shifts'), id)
  if not shift then return 0, 0 end
  local before, free = match(shift, '^(%d+) (%d+)$')
  return tonumber(before), tonumber(free)
end

-- Returns line, entry and times delivered of a message whose lease this worker holds with this epoch, or nil: it is fenced. A lease is
-- over at its end, whether or not someone has noticed.
local function owned(id, indexed, worker, epoch, receipt, lease)
  if not indexed or indexed ~= receipt then return nil end
  local line, entry = match(receipt, '^(%S+) (%S+)$')
  if not line then return nil end
  local pending = pcall_('XPENDING', stream_of(line), GROUP, entry, entry, 1, worker)
  if pending.err or not pending[1] then return nil end
  local count = pending[1][4]
  if pending[1][3] >= lease then return nil end
  if count + shift_of(id) ~= epoch then return nil end
  return line, entry, count
end

-- Keeps an outcome for the orchestrator. `by` names the call, so that a settle that is repeated after a lost answer is known as done.
local function publish(id, status, by, ...)
  local entry = call('XADD', key('outcomes'), '*', 'i', id, ...)
  call('HSET', key('held'), id, entry .. ' ' .. status .. ' ' .. by)
end

-- Gives a message up: a dead letter and an outcome, in the place of the message.
local function bury(id, line, entry, reason, deliveries, epoch, worker)
  local found = call('XRANGE', stream_of(line), entry, entry)[1]
  local body = found and found[2][4] or '{}'
  local beat = call('HGET', key('beats'), id) or ''
  local queue = place_of(line)
  local letter = call('XADD', base .. ':dead:' .. queue, '*', 'i', id, 'b', body, 'l', line, 'r', reason, 'd', deliveries, 'w', worker,
    'e', epoch, 'h', beat, 't', now)
  call('HSET', key('deadids'), id, queue .. ' ' .. letter)
  publish(id, 'dead', '-', 'b', body, 'r', reason, 'd', deliveries, 'w', worker, 'h', beat, 't', now)
  forget({id})
  count_lane(lane_of(line), -1)
  retire(line, {entry})
  wake('o', 1)
end

-- Takes a dead letter off its stream; returns its fields, or nil.
local function take_letter(id)
  local queue, entry = match(call('HGET', key('deadids'), id) or '', '^(%S+) (%S+)$')
  if not queue then return nil end
  local dead = base .. ':dead:' .. queue
  local found = call('XRANGE', dead, entry, entry)[1]
  call('HDEL', key('deadids'), id)
  call('XDEL', dead, entry)
  if call('XLEN', dead) == 0 then call('DEL', dead) end
  if not found then return nil end
  local letter = {}
  for i = 1, #found[2], 2 do letter[found[2][i]] = found[2][i + 1] end
  return letter
end

-- A delivery came to nothing: the message goes back to its line or waits for `delay` ms; if it was the last delivery it is given up, and
-- if it was cancelled it is gone.
local function give_back(id, line, entry, count, worker, most, reason, delay)
  free_slot(line, id)
  local before, free = shift_of(id)
  if call('HEXISTS', key('told'), id) == 1 then
    forget({id})
    count_lane(lane_of(line), -1)
    retire(line, {entry})
  elseif count - free >= most then
    bury(id, line, entry, reason, count - free, count + before, worker)
  elseif delay > 0 then
    call('XCLAIM', stream_of(line), GROUP, LATER, 0, entry, 'JUSTID')
    call('ZADD', base .. ':delayed:' .. place_of(line), now + delay, id)
  else
    call('XCLAIM', stream_of(line), GROUP, READY, 0, entry, 'JUSTID')
    activate(line, seq_of(entry))
    wake_line(line, 1)
  end
end

-- Makes delayed messages of a queue ready that are due, and returns when the next one is, or nil.
local function promote(queue)
  local delayed = base .. ':delayed:' .. queue
  local due = call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, CHUNK)
  if #due > 0 then
    local found, bodies = get_many(key('ids'), due), get_many(key('later'), due)
    local number = numbers(#due)
    local woken = {}
    for i, id in ipairs(due) do
      if found[i] then
        local line, entry = match(found[i], '^(%S+) (%S+)$')
        if entry ~= '-' then
          call('XCLAIM', stream_of(line), GROUP, READY, 0, entry, 'JUSTID')
        elseif bodies[i] then
          entry = number()
          ensure(line)
          append(line, id, bodies[i], entry)
        end
        activate(line, seq_of(entry))
        woken[line] = (woken[line] or 0) + 1
      end
    end
    call_many(due, 'ZREM', delayed)
    call_many(due, 'HDEL', key('later'))
    for line, number_of in pairs(woken) do wake_line(line, number_of) end
  end
  local first = call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  return first[2] and tonumber(first[2])
end

-- Lists lines again whose rate allows a start by now, and returns when the next one is due, or nil.
local function resume()
  local waiting = key('resume')
  local due = call('ZRANGEBYSCORE', waiting, '-inf', now, 'LIMIT', 0, CHUNK)
  for _, line in ipairs(due) do
    call('ZREM', waiting, line)
    local head = head_of(line)
    if head then
      activate(line, seq_of(head))
      wake_line(line, 1)
    end
  end
  local first = call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
  return first[2] and tonumber(first[2])
end

local function sooner(a, b)
  if not a then return b end
  if not b then return a end
  return math.min(a, b)
end
