-- The acts of a session store, each atomic. Sent once, called by its hash.
--
-- KEYS[1] is the prefix of all keys; its hash tag keeps them in one slot of a cluster. ARGV is the act, until
-- when it may still be done (by the server's clock: its caller has given up after that), and its arguments.
--
--   version                what the keys mean
--   born                   a random text: another one, and the keys before it are gone
--   n                      how many sessions there have been: they are listed in this order
--   nodes, gone            sorted sets: node -> the end of its lease; node -> since when it is lost, or has left
--   s:ID                   a hash: session (JSON), phase, node, n, state, reason, fence, attempt, pending, …
--   of:NODE                a sorted set: whose it is -> n
--   phase:PHASE            a sorted set: id -> n
--   due                    a sorted set: id -> the end of the grace, or the next attempt
--   asked:NODE             a set: ids of sessions that it is to close

local call, p = redis.call, KEYS[1]
local clock = call("TIME")
local now = clock[1] + clock[2] / 1000000
if now > tonumber(ARGV[2]) then
    return redis.error_reply("LATE its caller has given up")
end

local function seconds(number)
    return string.format("%.6f", number)
end

local function alive(node)
    return call("ZSCORE", p .. "nodes", node)
end

-- Whether it is in that phase and the node's own, and the node not lost.
local function own(id, node, phase)
    local found = call("HMGET", p .. "s:" .. id, "phase", "node")
    return found[1] == phase and found[2] == node and alive(node)
end

local function held(id, node, fence)
    return own(id, node, "closing") and call("HGET", p .. "s:" .. id, "fence") == fence
end

local function leave_indexes(id)
    local found = call("HMGET", p .. "s:" .. id, "phase", "node")
    call("ZREM", p .. "due", id)
    for _, phase in ipairs({ "open", "parked", "closing", "failed" }) do
        if found[1] == phase or not found[1] then
            call("ZREM", p .. "phase:" .. phase, id)
        end
    end
    if found[2] then
        call("ZREM", p .. "of:" .. found[2], id)
        call("SREM", p .. "asked:" .. found[2], id)
    end
end

-- The only place where a record changes its phase, owner or time.
local function move(id, phase, node, due)
    leave_indexes(id)
    local n = call("HGET", p .. "s:" .. id, "n")
    call("HSET", p .. "s:" .. id, "phase", phase)
    call("ZADD", p .. "phase:" .. phase, n, id)
    if node then
        call("HSET", p .. "s:" .. id, "node", node)
        call("ZADD", p .. "of:" .. node, n, id)
    else
        call("HDEL", p .. "s:" .. id, "node")
    end
    if due then
        call("ZADD", p .. "due", seconds(due), id)
    end
end

local function forget(id)
    leave_indexes(id)
    call("DEL", p .. "s:" .. id)
end

local function resumable(id)
    local due = call("ZSCORE", p .. "due", id)
    return due and tonumber(due) > now and call("HGET", p .. "s:" .. id, "phase") == "parked"
end

local function claim_of(id)
    local found = call(
        "HMGET", p .. "s:" .. id, "session", "reason", "fence", "attempt", "pending", "detected_after"
    )
    table.insert(found, 1, id)
    return found
end

local function take(id, node)
    call("HINCRBY", p .. "s:" .. id, "fence", 1)
    call("HINCRBY", p .. "s:" .. id, "attempt", 1)
    call("HDEL", p .. "s:" .. id, "state")
    move(id, "closing", node)
end

local acts = {}

-- 0 if the keys are of a version that this script does not know.
function acts.open(version)
    call("SETNX", p .. "version", version)
    return call("GET", p .. "version")
end

function acts.born(text)
    call("SETNX", p .. "born", text)
    return call("GET", p .. "born")
end

function acts.join(version, node, lease)
    call("SETNX", p .. "version", version)
    call("ZREM", p .. "gone", node)
    call("ZADD", p .. "nodes", seconds(now + lease), node)
    return 1
end

function acts.renew(node, lease)
    if not alive(node) then
        return 0
    end
    call("ZADD", p .. "nodes", seconds(now + lease), node)
    return 1
end

function acts.leave(node)
    if call("ZREM", p .. "nodes", node) == 1 then
        call("ZADD", p .. "gone", seconds(now), node)
    end
    return 1
end

function acts.add(node, id, session)
    if not alive(node) then
        return 0
    end
    local key = p .. "s:" .. id
    if call("EXISTS", key) == 1 then
        if not own(id, node, "open") then
            return 0
        end
        call("HSET", key, "session", session)
        return 1
    end
    local n = call("INCR", p .. "n")
    call("HSET", key, "session", session, "n", n, "phase", "open", "node", node, "fence", 0, "attempt", 0)
    call("ZADD", p .. "phase:open", n, id)
    call("ZADD", p .. "of:" .. node, n, id)
    return 1
end

function acts.save(node, ...)
    local many = { ... }
    for i = 1, #many, 2 do
        if own(many[i], node, "open") then
            call("HSET", p .. "s:" .. many[i], "session", many[i + 1])
        end
    end
    return 1
end

function acts.remove(node, id)
    if own(id, node, "open") then
        forget(id)
    end
    return 1
end

function acts.park(node, ...)
    local many = { ... }
    for i = 1, #many, 3 do
        local id = many[i]
        if own(id, node, "open") then
            local asked = call("SISMEMBER", p .. "asked:" .. node, id) == 1
            call("HSET", p .. "s:" .. id, "state", many[i + 2])
            move(id, "parked", nil, asked and now or now + many[i + 1])
        end
    end
    return 1
end

function acts.parked(id)
    return resumable(id) and call("HGET", p .. "s:" .. id, "state")
end

function acts.resume(node, id)
    if not own(id, node, "open") then
        if not (alive(node) and resumable(id)) then
            return false
        end
        call("HDEL", p .. "s:" .. id, "state")
        move(id, "open", node)
    end
    return call("HGET", p .. "s:" .. id, "session")
end

function acts.claim(node, id, session, reason, detected_after)
    local key = p .. "s:" .. id
    if own(id, node, "open") then
        call("HSET", key, "session", session, "reason", reason)
        if detected_after ~= "" then
            call("HSET", key, "detected_after", detected_after)
        end
        take(id, node)
    elseif not own(id, node, "closing") or call("HGET", key, "attempt") ~= "1" then
        return false
    end
    return claim_of(id)
end

-- What an earlier call has given to this node, whose answer got lost.
local function given(node, call_name)
    local found = {}
    for _, id in ipairs(call("ZRANGE", p .. "of:" .. node, 0, -1)) do
        if call("HGET", p .. "s:" .. id, "given") == call_name and own(id, node, "closing") then
            table.insert(found, claim_of(id))
        end
    end
    return found
end

local function overdue(limit)
    local found, gone = {}, call("ZRANGE", p .. "gone", 0, -1, "WITHSCORES")
    for i = 1, #gone, 2 do
        local ids = call("ZRANGE", p .. "of:" .. gone[i], 0, limit - #found - 1)
        if #ids == 0 then
            call("ZREM", p .. "gone", gone[i])
            call("DEL", p .. "asked:" .. gone[i])
        end
        for _, id in ipairs(ids) do
            table.insert(found, { tonumber(gone[i + 1]), #found, id })
        end
        if #found >= limit then
            break
        end
    end
    local due = call("ZRANGEBYSCORE", p .. "due", "-inf", seconds(now), "WITHSCORES", "LIMIT", 0, limit)
    for i = 1, #due, 2 do
        table.insert(found, { tonumber(due[i + 1]), #found, due[i] })
    end
    table.sort(found, function(a, b)
        return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2])
    end)
    return found
end

function acts.claim_orphans(node, limit, call_name, lost_call)
    limit = tonumber(limit)
    if not alive(node) or limit < 1 then
        return {}
    end
    if lost_call ~= "" then
        local lost = given(node, lost_call)
        if #lost > 0 then
            return lost
        end
    end
    local ended = call("ZRANGEBYSCORE", p .. "nodes", "-inf", seconds(now), "WITHSCORES")
    for i = 1, #ended, 2 do
        if ended[i] ~= node then
            call("ZREM", p .. "nodes", ended[i])
            call("ZADD", p .. "gone", ended[i + 1], ended[i])
        end
    end
    local claims = {}
    for _, item in ipairs(overdue(limit)) do
        local id = item[3]
        local phase = call("HGET", p .. "s:" .. id, "phase")
        if #claims < limit then
            if phase then
                local reason = phase == "open" and "NODE_LOST" or "SHUTDOWN"
                call("HSETNX", p .. "s:" .. id, "reason", reason)
                call("HSET", p .. "s:" .. id, "given", call_name)
                take(id, node)
                table.insert(claims, claim_of(id))
            else
                forget(id)
            end
        end
    end
    return claims
end

function acts.finish(node, id, fence)
    if not held(id, node, fence) then
        return 0
    end
    forget(id)
    return 1
end

function acts.give_up(node, id, fence, phase, delay, pending, error)
    if not held(id, node, fence) then
        return 0
    end
    call("HSET", p .. "s:" .. id, "pending", pending, "error", error)
    move(id, phase, nil, delay ~= "" and now + delay or nil)
    return 1
end

function acts.rows(phase, limit)
    local found = {}
    for _, name in ipairs({ "open", "parked", "closing", "failed" }) do
        if tonumber(limit) > 0 and (phase == "" or phase == name) then
            local ids = call("ZRANGE", p .. "phase:" .. name, 0, limit - 1, "WITHSCORES")
            for i = 1, #ids, 2 do
                table.insert(found, { tonumber(ids[i + 1]), ids[i] })
            end
        end
    end
    table.sort(found, function(a, b)
        return a[1] < b[1]
    end)
    local rows = {}
    for i = 1, math.min(#found, tonumber(limit)) do
        local id = found[i][2]
        local row = call(
            "HMGET", p .. "s:" .. id, "session", "phase", "node", "reason", "fence", "attempt", "error"
        )
        local due = row[2] == "closing" and call("ZSCORE", p .. "due", id)
        table.insert(row, due and seconds(math.max(0, due - now)))
        table.insert(row, 1, id)
        if row[2] then
            table.insert(rows, row)
        end
    end
    return rows
end

function acts.counts()
    local counts = {}
    for _, phase in ipairs({ "open", "parked", "closing", "failed" }) do
        table.insert(counts, call("ZCARD", p .. "phase:" .. phase))
    end
    return counts
end

function acts.retry(id)
    if call("HGET", p .. "s:" .. id, "phase") ~= "failed" then
        return 0
    end
    move(id, "closing", nil, now)
    return 1
end

function acts.ask_to_close(id)
    local found = call("HMGET", p .. "s:" .. id, "phase", "node")
    if found[1] == "open" then
        call("SADD", p .. "asked:" .. found[2], id)
        return 1
    end
    if found[1] ~= "parked" then
        return 0
    end
    local due = tonumber(call("ZSCORE", p .. "due", id))
    call("ZADD", p .. "due", seconds(math.min(due, now)), id)
    return 1
end

function acts.asked_to_close(node)
    if not alive(node) then
        return {}
    end
    local ids = call("SMEMBERS", p .. "asked:" .. node)
    call("DEL", p .. "asked:" .. node)
    return ids
end

return acts[ARGV[1]](unpack(ARGV, 3))
