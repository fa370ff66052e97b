-- Returns ids, leased to a worker, that were cancelled since it last asked. ARGV: consumer, token of the waiting call or "".
local found = call('SMEMBERS', base .. ':cancelled:' .. ARGV[1])
if ARGV[2] ~= '' then call('ZREM', base .. ':idle:c:' .. ARGV[1], ARGV[2]) end
if #found > 0 then
  call('DEL', base .. ':cancelled:' .. ARGV[1])
elseif ARGV[2] ~= '' then
  idle('c:' .. ARGV[1], ARGV[2])
end
return found
