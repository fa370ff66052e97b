-- The arithmetic of limits/book.py inside Redis. KEYS[1] is the base of all keys, in braces, so that they share a slot of a Cluster.
-- ARGV: the constants as JSON, the holder, a time that tests set ("" for the server's clock), then the requests as JSON.
-- A script runs atomically: each request is all or nothing, and so is the batch.
--
--   base:holders      sorted set: holder -> when it was last heard of
--   base:flow:KEY     hash: level, at; minute, used, before: what was used in a minute of the clock and in the one before
--   base:slots:KEY    hash: h:HOLDER -> count, refused, p:PRIORITY -> when it last asked
--   base:purse:KEY    hash: spent, reserved
--   base:hold:ID      the reservation as JSON; base:holds:HOLDER is the set of its ids
--   base:held:HOLDER  set of the slots keys in which a holder has any
--   base:cool:GATE    until when
--   base:loads        hash: holder -> what it has at its endpoints, as JSON, for people

local base, constants, holder = KEYS[1], cjson.decode(ARGV[1]), ARGV[2]
local now
if ARGV[3] == '' then
    local time = redis.call('TIME')
    now = tonumber(time[1]) + tonumber(time[2]) / 1000000
else
    now = tonumber(ARGV[3])
end
local LEASE, LOOKAHEAD, RESERVE, REMEMBERED = constants.lease, constants.lookahead, constants.reserve, constants.remembered
local EPSILON, SLOT_WAIT = 1e-9, constants.slot_wait
local KEPT = math.floor(constants.kept * 1000)

local function text(number)
    return string.format('%.17g', number)
end

local function number(value)
    return value and tonumber(value) or 0
end

local function move(key, reserved, spent)
    local at = base .. ':purse:' .. key
    local known = redis.call('HMGET', at, 'spent', 'reserved')
    redis.call('HSET', at, 'spent', text(number(known[1]) + spent), 'reserved', text(math.max(0, number(known[2]) + reserved)))
    redis.call('PEXPIRE', at, KEPT)
end

local function bury(name, charge)
    redis.call('ZREM', base .. ':holders', name)
    redis.call('HDEL', base .. ':loads', name)
    for _, key in ipairs(redis.call('SMEMBERS', base .. ':held:' .. name)) do
        redis.call('HDEL', base .. ':slots:' .. key, 'h:' .. name)
    end
    redis.call('DEL', base .. ':held:' .. name)
    for _, id in ipairs(redis.call('SMEMBERS', base .. ':holds:' .. name)) do
        local found = redis.call('GET', base .. ':hold:' .. id)
        if found then
            for _, pair in ipairs(cjson.decode(found).amounts) do
                move(pair[1], -pair[2], charge and pair[2] or 0)
            end
            redis.call('DEL', base .. ':hold:' .. id)
        end
    end
    redis.call('DEL', base .. ':holds:' .. name)
end

redis.call('ZADD', base .. ':holders', text(now), holder)
for _, name in ipairs(redis.call('ZRANGEBYSCORE', base .. ':holders', '-inf', '(' .. text(now - LEASE))) do
    bury(name, true)
end

local function leaves(priority)
    return RESERVE * math.max(0, math.min(priority, 6) - 1)
end

local function put_flow(key, level, used)
    local at, minute = base .. ':flow:' .. key, math.floor(now / 60)
    local known = redis.call('HMGET', at, 'minute', 'used', 'before')
    local sum, before = number(known[2]), number(known[3])
    if number(known[1]) ~= minute then
        before = number(known[1]) + 1 == minute and sum or 0
        sum = 0
    end
    redis.call('HSET', at, 'level', text(level), 'at', text(now), 'minute', minute, 'used', text(sum + used), 'before', text(before))
    redis.call('PEXPIRE', at, KEPT)
end

local function take(request)
    local alive = math.max(1, redis.call('ZCARD', base .. ':holders'))
    local cool = number(redis.call('GET', base .. ':cool:' .. request.gate))
    if cool > now + EPSILON then
        return { granted = false, wait = cool - now, holders = alive }
    end
    local delay, wait, short, contended = 0, 0, '', false
    local levels, slots = {}, {}
    for i, flow in ipairs(request.flows) do
        local known = redis.call('HMGET', base .. ':flow:' .. flow.key, 'level', 'at')
        local level = flow.burst
        if known[1] then
            level = math.min(flow.burst, number(known[1]) + math.max(0, now - number(known[2])) * flow.rate)
        end
        if flow.left and flow.left ~= cjson.null then
            level = math.min(level, flow.left)
        end
        levels[i] = level
        local floor = math.min(leaves(request.priority) * flow.burst, math.max(0, flow.burst - flow.need))
        local missing, due = math.min(flow.need, flow.burst) + floor - level, 0
        if missing > EPSILON * flow.burst then
            due = missing / flow.rate
        end
        delay = math.max(delay, due)
        if due > LOOKAHEAD and due > wait then
            wait, short = due, flow.key
        end
    end
    local asked = math.max(1, math.floor(request.priority))
    for i, wanted in ipairs(request.slots) do
        local at = base .. ':slots:' .. wanted.key
        local fields = redis.call('HGETALL', at)
        local used, higher, refused = 0, false, 0
        for n = 1, #fields, 2 do
            local name, value = fields[n], number(fields[n + 1])
            if name == 'refused' then
                refused = value
            elseif string.sub(name, 1, 2) == 'h:' then
                used = used + value
            elseif number(string.sub(name, 3)) < asked and now - value < REMEMBERED then
                higher = true
            end
        end
        local free = wanted.limit - used
        if higher and wanted.limit > 1 then
            free = free - math.max(1, math.floor(RESERVE * wanted.limit))
        end
        contended = contended or now - refused < REMEMBERED
        redis.call('HSET', at, 'p:' .. asked, text(now))
        redis.call('PEXPIRE', at, KEPT)
        if free < wanted.need then
            redis.call('HSET', at, 'refused', text(now))
            if wait < SLOT_WAIT then
                wait, short = SLOT_WAIT, wanted.key
            end
        end
        slots[i] = free
    end
    if short ~= '' then
        wait = math.max(wait - LOOKAHEAD / 2, SLOT_WAIT / 5)
        return { granted = false, wait = wait, short = short, holders = alive, contended = contended }
    end
    local taken, got = {}, {}
    for i, flow in ipairs(request.flows) do
        local spare = math.max(0, levels[i] - flow.need - leaves(request.priority) * flow.burst) / alive
        local amount = flow.need + math.max(0, math.min((flow.want or 0) - flow.need, spare))
        put_flow(flow.key, levels[i] - amount, amount)
        taken[i] = amount
    end
    for i, wanted in ipairs(request.slots) do
        local extra = 0
        if not contended then
            extra = math.max(0, math.min(wanted.want - wanted.need, math.floor((slots[i] - wanted.need) / alive)))
        end
        redis.call('HINCRBY', base .. ':slots:' .. wanted.key, 'h:' .. holder, wanted.need + extra)
        redis.call('SADD', base .. ':held:' .. holder, wanted.key)
        got[i] = wanted.need + extra
    end
    return { granted = true, flows = taken, slots = got, delay = delay, holders = alive, contended = contended }
end

local function give(request)
    for _, entry in ipairs(request.flows) do
        local key, rate, burst, amount = entry[1], entry[2], entry[3], entry[4]
        local at = base .. ':flow:' .. key
        local known = redis.call('HMGET', at, 'level', 'at')
        local level = burst
        if known[1] then
            level = number(known[1]) + math.max(0, now - number(known[2])) * rate
        end
        put_flow(key, math.min(burst, level + amount), -amount)
    end
    for _, entry in ipairs(request.slots) do
        local at = base .. ':slots:' .. entry[1]
        if redis.call('HEXISTS', at, 'h:' .. holder) == 1 and redis.call('HINCRBY', at, 'h:' .. holder, -entry[2]) <= 0 then
            redis.call('HDEL', at, 'h:' .. holder)
            redis.call('SREM', base .. ':held:' .. holder, entry[1])
        end
    end
    return false
end

local function hold(request)
    local place = base .. ':hold:' .. request.id
    if redis.call('EXISTS', place) == 1 then
        return { answer = 'granted' }
    end
    local severity = { granted = 1, soft = 2, wait = 3, hard = 4 }
    local verdict, at_key, said, amounts = 'granted', '', 0, {}
    for _, purse in ipairs(request.purses) do
        local at = base .. ':purse:' .. purse.key
        local known = redis.call('HMGET', at, 'spent', 'reserved')
        local spent, reserved = math.max(number(known[1]), purse.spent or 0), number(known[2])
        redis.call('HSET', at, 'spent', text(spent), 'reserved', text(reserved))
        redis.call('PEXPIRE', at, KEPT)
        local answer, room = 'granted', purse.limit - spent + EPSILON
        if reserved + request.most > room then
            if request.likely > room then
                answer = 'hard'
            elseif reserved > EPSILON then
                answer = 'wait'
            end
        end
        if answer == 'granted' and not request.past_soft and spent + reserved + request.likely > purse.soft + EPSILON then
            answer = 'soft'
        end
        if severity[answer] > severity[verdict] then
            verdict, at_key, said = answer, purse.key, spent
        end
        amounts[#amounts + 1] = { purse.key, request.most }
    end
    if verdict == 'granted' then
        for _, purse in ipairs(request.purses) do
            move(purse.key, request.most, 0)
        end
        redis.call('SET', place, cjson.encode({ holder = holder, amounts = amounts }), 'PX', KEPT)
        redis.call('SADD', base .. ':holds:' .. holder, request.id)
    end
    return { answer = verdict, key = at_key, spent = said }
end

local function settle(request)
    local place = base .. ':hold:' .. request.id
    local found = redis.call('GET', place)
    if found then
        local known = cjson.decode(found)
        for _, pair in ipairs(known.amounts) do
            move(pair[1], -pair[2], request.cost)
        end
        redis.call('DEL', place)
        redis.call('SREM', base .. ':holds:' .. known.holder, request.id)
    end
    return false
end

local answers = {}
for i, request in ipairs(cjson.decode(ARGV[4])) do
    local verb, answer = request.verb, false
    if verb == 'Take' then
        answer = take(request)
    elseif verb == 'Give' then
        answer = give(request)
    elseif verb == 'Hold' then
        answer = hold(request)
    elseif verb == 'Settle' then
        answer = settle(request)
    elseif verb == 'Cool' then
        local at = base .. ':cool:' .. request.gate
        local till = math.max(now + request.seconds, number(redis.call('GET', at)))
        redis.call('SET', at, text(till), 'PX', math.max(1, math.ceil((till - now) * 1000)))
    elseif verb == 'Beat' then
        if request.loads ~= '' then
            redis.call('HSET', base .. ':loads', holder, request.loads)
        else
            redis.call('HDEL', base .. ':loads', holder)
        end
    elseif verb == 'Leave' then
        bury(holder, false)
    end
    answers[i] = answer and cjson.encode(answer) or ''
end
return answers
