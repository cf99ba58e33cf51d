-- A visit to a board in Redis: one call, one round trip. The same algorithm as board.py and controls.py, which explain
-- it; steps and names are theirs. A test plays the same visits through both and compares every digit.
--
-- KEYS[1]  the board
-- ARGV      1 name   2-4 waiting   5-7 ages   8-10 tokens   11 given back   12 settled tokens   13 sent alone
--          14 alone for   15 leaving   16 answers "sent:received,…"   17 429s "sent:received:retry_after,…", -1 for none
--          18 random number   19 whether the limits are an explicit declaration   20 their age
--          21 whether the caller has seen a board, so that a new one starts empty
--          22-26 limits: mode, requests per minute, burst, tokens per minute, probe_every
--          27-34 the declared limit: ceiling, floor, burst, capacity, empty level, pacer rate, refill, strict
--          35 a rate learned earlier, or 0   36 the time, in tests only
-- Returns  {"general"} if the board needs Python, because its limit is discovered; {"newer", participants} if a newer
--          version of the package keeps it; else {"ok", …}, see the end.
--          Fractions are returned as text, because Redis cuts the numbers of Lua to integers.

local FORMAT = 1
local SEEN, DUE, WAITING, SINCE, PASS, COST = 1, 2, 3, 6, 9, 12
local MINUTE = 15
local STRIDES, INTERACTIVE_RESERVE, GRACE, LEASE, IDLE = {1 / 16, 1 / 4, 1}, 3, 0.05, 5, 60
local MAX_PARTICIPANTS, MIN_WAIT, CLOCK_STEP, SAME_MOMENT, MAX_RETRY_AFTER = 64, 0.001, 1, 0.05, 300
local SLACK = 1e-9
local TRUST, DECREASE, STEP, ACCELERATE_AFTER, OUTAGE_AFTER = 100, 0.7, 0.01, 10, 6
local abs, ceil, floor, max, min, sqrt = math.abs, math.ceil, math.floor, math.max, math.min, math.sqrt

local function arg(index) return tonumber(ARGV[index]) end
local function text(number) return string.format('%.17g', number) end

local now = arg(36)
if not now then
  local clock = redis.call('TIME')
  now = clock[1] + clock[2] / 1000000
end
local draw, explicit, age = arg(18), arg(19) == 1, arg(20)

-- Buckets -------------------------------------------------------------------------------------------------------------

local function level_at(bucket, time)
  return min(bucket.capacity, bucket.level + max(0, time - bucket.updated_at) * bucket.rate)
end

local function add(bucket, amount, time)
  bucket.level = min(bucket.capacity, level_at(bucket, time) + amount)
  bucket.updated_at = max(bucket.updated_at, time)
end

local function retune(bucket, rate, capacity, time)
  bucket.level = min(capacity, level_at(bucket, time))
  bucket.updated_at = max(bucket.updated_at, time)
  bucket.rate = rate
  bucket.capacity = capacity
end

local limit = {ceiling = arg(27), floor = arg(28), burst = arg(29), capacity = arg(30), empty_level = arg(31),
               pacer_rate = arg(32), refill = arg(33), strict = arg(34)}
local is_declared = limit.ceiling > 0
local limits = {ARGV[22], arg(23), arg(24), arg(25), arg(26)}

local function declare(control)
  control.ceiling = limit.ceiling
  control.floor = limit.floor
  control.burst = limit.burst
  control.empty_level = limit.empty_level
  control.refill = limit.refill
  control.strict = limit.strict
  control.fallen_from = limit.ceiling
  control.answers = 0
  control.decreases = 0
  control.cost = 1
end

local function new_tokens(time, empty)
  if limits[4] == 0 then return {0, 0, 0, 0} end
  return {limits[4] / 60, limits[4], empty and 0 or limits[4], time}
end

local function new_board()
  local empty = arg(21) == 1
  local control = {kind = 'declared', rate = limit.ceiling, capacity = limit.capacity, level = limit.capacity,
                   updated_at = now, pacer_rate = limit.pacer_rate, pacer_capacity = 1, pacer_level = 1,
                   pacer_updated_at = now, confirmed_at = now + limit.refill, rate_limited_at = -1,
                   consecutive_429s = 0}
  declare(control)
  local learned = arg(35)
  if limit.strict == 0 and learned > 0 and learned < limit.ceiling then control.rate = max(limit.floor, learned) end
  if empty then control.level = 0 end
  return {at = now, offset = 0, declared = limits, declared_at = explicit and now - age or -1, control = control,
          tokens = new_tokens(now, empty), lane_pass = {0, 0, 0}, lane_time = 0, pass_time = {0, 0, 0},
          interactive_seen = 0, retry_at = -1, thawed_at = empty and now or -1, granted = 0, clock_moves = 0,
          recent = {0, 0, 0}, rows = {}}
end

local image = redis.call('GET', KEYS[1])
if not image and not is_declared then return {'general'} end
local board
if not image then
  board = new_board()
elseif string.sub(image, 1, 1) == '{' then
  board = cjson.decode(image)
else
  board = cmsgpack.unpack(image)
end
if (board.format or FORMAT) > FORMAT then
  local count = 0
  for _ in pairs(board.rows) do count = count + 1 end
  return {'newer', count}
end
local is_newest = explicit and now - age > board.declared_at + SAME_MOMENT
if board.control.kind ~= 'declared' or (is_newest and not is_declared) then return {'general'} end

local rows, lane_pass, pass_time = board.rows, board.lane_pass, board.pass_time
local control = board.control
-- The two buckets of the control, whose numbers stand in it side by side.
local bucket = {rate = control.rate, capacity = control.capacity, level = control.level,
                updated_at = control.updated_at}
local pacer = {rate = control.pacer_rate, capacity = control.pacer_capacity, level = control.pacer_level,
               updated_at = control.pacer_updated_at}

-- The clock -----------------------------------------------------------------------------------------------------------

if now < board.at then
  if board.at - now <= CLOCK_STEP then
    now = board.at
  else
    board.offset = board.offset + (board.at - now)
    board.at = now
    board.retry_at = min(board.retry_at, now + MAX_RETRY_AFTER)
    board.thawed_at = min(board.thawed_at, now)
    board.declared_at = min(board.declared_at, now)
    for _, row in pairs(rows) do
      row[SEEN] = now
      row[DUE] = now
      for lane = 0, 2 do row[SINCE + lane] = min(row[SINCE + lane], now) end
    end
    board.clock_moves = board.clock_moves + 1
  end
end

-- Step 1: declarations and reports ------------------------------------------------------------------------------------

local tokens = board.tokens[2] > 0 and {rate = board.tokens[1], capacity = board.tokens[2], level = board.tokens[3],
                                        updated_at = board.tokens[4]} or nil

local function same_limits(one, other)
  for index = 1, 5 do
    if one[index] ~= other[index] then return false end
  end
  return true
end

if explicit and now - age > board.declared_at + SAME_MOMENT then
  board.declared_at = now - age
  local before, time = board.declared, now + board.offset
  board.declared = limits
  if not same_limits(before, limits) then
    if limit.ceiling ~= control.ceiling or limit.burst ~= control.burst or limit.strict ~= control.strict then
      retune(bucket, limit.ceiling, limit.capacity, time)
      retune(pacer, limit.pacer_rate, 1, time)
      control.confirmed_at = min(control.confirmed_at, time + limit.refill)
      declare(control)
    end
    if tokens and limits[4] > 0 then
      retune(tokens, limits[4] / 60, limits[4], time)
    else
      local fresh = new_tokens(time, false)
      tokens = fresh[2] > 0 and {rate = fresh[1], capacity = fresh[2], level = fresh[3], updated_at = fresh[4]} or nil
    end
  end
end

local sent, alone_for = arg(13), arg(14)
if sent > 0 then
  local left_at = now - alone_for
  if board.at <= left_at then
    board.offset = board.offset - (now - board.at)
    board.thawed_at = now
  else
    if left_at < board.thawed_at then
      sent = floor(sent * (now - board.thawed_at) / max(alone_for, 1e-9) + 0.5)
    end
    add(bucket, -sent, now + board.offset)
    board.granted = board.granted + sent
  end
end

local time = now + board.offset
if arg(11) > 0 then add(bucket, arg(11), time) end
if tokens and arg(12) ~= 0 then add(tokens, arg(12), time) end

local function answered(sent_at, received_at)
  if sent_at <= control.rate_limited_at then return end
  control.consecutive_429s = 0
  local rate = bucket.rate
  if control.decreases == 0 and rate >= control.ceiling then return end
  if control.decreases >= OUTAGE_AFTER then rate = max(rate, DECREASE * control.fallen_from) end
  control.decreases = 0
  control.answers = control.answers + 1
  local share = control.answers / ACCELERATE_AFTER
  local root = sqrt(rate) + STEP * (1 + share * share)
  retune(bucket, min(control.ceiling, root * root), bucket.capacity, received_at)
end

local function rate_limited(sent_at, received_at, retry_after)
  if sent_at <= control.rate_limited_at then return end
  local before = control.rate_limited_at
  control.rate_limited_at = received_at
  control.consecutive_429s = control.consecutive_429s + 1
  local told = retry_after >= 0 and control.consecutive_429s > 1
  if not told and control.strict == 0 and before >= 0 and (received_at - before) * bucket.rate < TRUST then
    if control.decreases == 0 then control.fallen_from = bucket.rate end
    control.decreases = control.decreases + 1
    control.answers = 0
    retune(bucket, max(control.floor, DECREASE * bucket.rate), bucket.capacity, received_at)
  end
  bucket.level = min(level_at(bucket, received_at), control.empty_level)
  bucket.updated_at = max(bucket.updated_at, received_at)
end

for one, other in string.gmatch(ARGV[16], '([^:,]+):([^:,]+)') do
  answered(time - tonumber(one), time - tonumber(other))
end
for one, other, asked in string.gmatch(ARGV[17], '([^:,]+):([^:,]+):([^:,]+)') do
  local received, retry_after = tonumber(other), tonumber(asked)
  rate_limited(time - tonumber(one), time - received, retry_after)
  if retry_after >= 0 then
    board.retry_at = max(board.retry_at, now - received + min(retry_after, MAX_RETRY_AFTER))
  end
end
board.at = now

-- Step 2: participants ------------------------------------------------------------------------------------------------

local function is_busy(row) return row[WAITING] > 0 or row[WAITING + 1] > 0 or row[WAITING + 2] > 0 end

local me, others, count = nil, {}, 0

local function find_rows()
  local name, names = ARGV[1], {}
  me = rows[name]
  if not me then
    me = {now, now, 0, 0, 0, 0, 0, 0, pass_time[1], pass_time[2], pass_time[3], 0, 0, 0, 0, 0, 0}
    rows[name] = me
  end
  me[SEEN] = now
  for other, row in pairs(rows) do
    if row ~= me and (is_busy(row) and row[DUE] + LEASE or row[SEEN] + IDLE) < now then
      rows[other] = nil
    else
      count = count + 1
      if row ~= me then names[#names + 1] = other end
    end
  end
  table.sort(names)
  while count > MAX_PARTICIPANTS do
    local oldest = 1
    for index, other in ipairs(names) do
      if rows[other][SEEN] < rows[names[oldest]][SEEN] then oldest = index end
    end
    rows[names[oldest]] = nil
    table.remove(names, oldest)
    count = count - 1
  end
  for _, other in ipairs(names) do
    if is_busy(rows[other]) then others[#others + 1] = rows[other] end
  end
end

-- Step 3: demand ------------------------------------------------------------------------------------------------------

local function waits(list, column)
  for _, row in ipairs(list) do
    if row[column] > 0 then return true end
  end
  return false
end

local function record_demand()
  if arg(2) > 0 then board.interactive_seen = 1 end
  for lane = 0, 2 do
    local waiting = arg(2 + lane)
    if waiting > 0 and me[WAITING + lane] == 0 then
      me[PASS + lane] = max(me[PASS + lane], pass_time[lane + 1])
      if not waits(others, WAITING + lane) then
        lane_pass[lane + 1] = max(lane_pass[lane + 1], board.lane_time)
      end
    end
    me[WAITING + lane] = waiting
    if waiting > 0 then me[SINCE + lane] = max(me[SINCE + lane], now - arg(5 + lane)) end
    me[COST + lane] = arg(8 + lane)
  end
end

-- Step 4: permits for now ---------------------------------------------------------------------------------------------

local function reserve_of(lane, interactive_waits)
  if lane == 0 or interactive_waits or board.interactive_seen == 0 then return 0 end
  return INTERACTIVE_RESERVE
end

local function time_until(requests, wanted_tokens, reserve, paced)
  local kept = min(reserve, bucket.capacity - control.cost) + control.cost - 1
  local wait = (requests + kept - level_at(bucket, time)) / bucket.rate
  if paced and time < control.confirmed_at then
    wait = max(wait, min((requests - level_at(pacer, time)) / pacer.rate, control.confirmed_at - time))
  end
  if wait <= SLACK then wait = 0 end
  if tokens then wait = max(wait, (wanted_tokens - level_at(tokens, time)) / tokens.rate) end
  return wait > SLACK and wait or 0
end

local function cost_of(row, lane)
  return tokens and min(row[COST + lane], tokens.capacity) or 0
end

local function take(lane)
  add(bucket, -1, time)
  if control.consecutive_429s > 1 then bucket.level = min(bucket.level, 0) end
  control.cost = 1
  if bucket.rate < control.ceiling then control.cost = 0.5 + draw * (min(1.5, bucket.capacity) - 0.5) end
  if time < control.confirmed_at and (1 - level_at(pacer, time)) / pacer.rate <= SLACK then add(pacer, -1, time) end
  if tokens then add(tokens, -me[COST + lane], time) end
  board.lane_time = lane_pass[lane + 1]
  pass_time[lane + 1] = me[PASS + lane]
  lane_pass[lane + 1] = lane_pass[lane + 1] + STRIDES[lane + 1]
  board.granted = board.granted + 1
end

local function deal()
  local contenders, busy, pass = {me}, {0, 0, 0}, {lane_pass[1], lane_pass[2], lane_pass[3]}
  for _, row in ipairs(others) do
    if abs(row[DUE] - now) <= GRACE then contenders[#contenders + 1] = {unpack(row)} end
  end
  for _, row in ipairs(contenders) do
    for lane = 0, 2 do busy[lane + 1] = busy[lane + 1] + row[WAITING + lane] end
  end
  local permits, charged, left, left_tokens = 0, 0, 0, 0
  while busy[1] + busy[2] + busy[3] > 0 do
    local lane
    for index = 0, 2 do
      if busy[index + 1] > 0 and (not lane or pass[index + 1] < pass[lane + 1]) then lane = index end
    end
    local first
    for _, row in ipairs(contenders) do
      if row[WAITING + lane] > 0 and (not first or row[PASS + lane] < first[PASS + lane]
          or (row[PASS + lane] == first[PASS + lane] and row[SINCE + lane] < first[SINCE + lane])) then
        first = row
      end
    end
    local cost = cost_of(first, lane)
    local paced = busy[1] == 0 and busy[2] == 0
    if time_until(1 + left, left_tokens + cost, reserve_of(lane, busy[1] > 0), paced) > 0 then break end
    if first == me then
      take(lane)
      if tokens then charged = charged + me[COST + lane] end
      permits = permits + 1
    else
      left = left + 1
      left_tokens = left_tokens + cost
    end
    first[PASS + lane] = first[PASS + lane] + 1
    first[SINCE + lane] = now
    first[WAITING + lane] = first[WAITING + lane] - 1
    busy[lane + 1] = busy[lane + 1] - 1
    pass[lane + 1] = pass[lane + 1] + STRIDES[lane + 1]
  end
  return permits, charged
end

-- Step 5: the next visit ----------------------------------------------------------------------------------------------

local function ahead_of(lane, punctual)
  local inside, wanted = 0, 0
  for _, other in ipairs(punctual) do
    local behind = me[PASS + lane] - other[PASS + lane]
    local turns = 0
    if behind > 0 then
      turns = ceil(behind)
    elseif behind == 0 and other[SINCE + lane] < me[SINCE + lane] then
      turns = 1
    end
    turns = min(turns, other[WAITING + lane])
    inside = inside + turns
    wanted = wanted + turns * cost_of(other, lane)
  end
  local reached, ahead, mine = lane_pass[lane + 1] + inside * STRIDES[lane + 1], inside, 0
  for another = 0, 2 do
    local behind = reached - lane_pass[another + 1]
    if another ~= lane and (behind > 0 or (behind == 0 and another < lane)) then
      local waiting = me[WAITING + another]
      local costs = waiting * cost_of(me, another)
      for _, other in ipairs(punctual) do
        waiting = waiting + other[WAITING + another]
        costs = costs + other[WAITING + another] * cost_of(other, another)
      end
      if waiting > 0 then
        local turns = min(waiting, floor(behind / STRIDES[another + 1]) + 1)
        ahead = ahead + turns
        mine = mine + min(turns, me[WAITING + another])
        wanted = wanted + turns * costs / waiting
      end
    end
  end
  return ahead, mine, wanted
end

local function turn(punctual)
  local best_ahead, best_wait
  local interactive_waits = me[WAITING] > 0 or waits(others, WAITING)
  local paced = not interactive_waits and me[WAITING + 1] == 0 and not waits(others, WAITING + 1)
  for lane = 0, 2 do
    if me[WAITING + lane] > 0 then
      local ahead, mine, wanted = ahead_of(lane, punctual)
      local wait = time_until(ahead + 1, wanted + cost_of(me, lane), reserve_of(lane, interactive_waits), paced)
      if not best_wait or wait < best_wait then best_ahead, best_wait = ahead - mine, wait end
    end
  end
  return best_ahead, max(best_wait, MIN_WAIT)
end

local function next_visit()
  local punctual = {}
  for _, row in ipairs(others) do
    if row[DUE] >= now - GRACE then punctual[#punctual + 1] = row end
  end
  while true do
    local before, wait = turn(punctual)
    local present = {}
    for _, row in ipairs(punctual) do
      if row[DUE] <= now + wait + GRACE then present[#present + 1] = row end
    end
    if #present == #punctual then return before, wait end
    punctual = present
  end
end

local minute = floor(now / 60)

local function count_grants(row, permits, first)
  if row[first] ~= minute then
    row[first + 2] = row[first] == minute - 1 and row[first + 1] or 0
    row[first] = minute
    row[first + 1] = 0
  end
  row[first + 1] = row[first + 1] + permits
end

local function recent_grants(row, first)
  local rest = 1 - (now / 60 - minute)
  if row[first] == minute then return row[first + 1] + row[first + 2] * rest end
  return row[first] == minute - 1 and row[first + 1] * rest or 0
end

local permits, charged, ahead, again_in = 0, 0, 0, -1
if arg(15) == 1 then
  rows[ARGV[1]] = nil
  for _ in pairs(rows) do count = count + 1 end
else
  find_rows()
  record_demand()
  if is_busy(me) and board.retry_at > now then
    again_in = board.retry_at - now
  elseif is_busy(me) then
    permits, charged = deal()
    if is_busy(me) then ahead, again_in = next_visit() end
  end
  me[DUE] = again_in < 0 and now or now + again_in
  if permits > 0 then
    count_grants(me, permits, MINUTE)
    count_grants(board.recent, permits, 1)
  end
end

local share = -1
if me then
  local total = recent_grants(board.recent, 1)
  if total > 0 then share = recent_grants(me, MINUTE) / total end
end

control.rate = bucket.rate
control.capacity = bucket.capacity
control.level = bucket.level
control.updated_at = bucket.updated_at
control.pacer_rate = pacer.rate
control.pacer_capacity = pacer.capacity
control.pacer_level = pacer.level
control.pacer_updated_at = pacer.updated_at
board.tokens = tokens and {tokens.rate, tokens.capacity, tokens.level, tokens.updated_at} or {0, 0, 0, 0}
redis.call('SET', KEYS[1], cmsgpack.pack(board), 'EX', max(3600, ceil(2 * bucket.capacity / bucket.rate)))

return {'ok', permits, text(again_in), ahead, text(bucket.rate), text(control.burst), text(level_at(bucket, time)),
        text(bucket.rate / control.ceiling), count, text(share),
        (control.consecutive_429s > 0 or bucket.rate < control.ceiling) and 1 or 0,
        text(board.retry_at > now and board.retry_at - now or -1), text(charged),
        tokens and text(level_at(tokens, time)) or '', text(bucket.rate >= control.ceiling and bucket.rate or 0),
        text(control.ceiling)}
