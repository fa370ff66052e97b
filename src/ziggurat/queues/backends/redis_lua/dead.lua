-- Returns dead letters as a JSON array, the newest of each queue first. ARGV: limit.
local answer = {}
for _, queue in ipairs(call('SMEMBERS', key('queues'))) do
  for _, entry in ipairs(call('XREVRANGE', base .. ':dead:' .. queue, '+', '-', 'COUNT', ARGV[1])) do
    local it = {}
    for i = 1, #entry[2], 2 do it[entry[2][i]] = entry[2][i + 1] end
    answer[#answer + 1] = '{"e":"' .. entry[1] .. '","i":' .. cjson.encode(it.i) .. ',"m":' .. it.b .. ',"r":' .. cjson.encode(it.r) .. ',"d":'
      .. it.d .. ',"w":' .. cjson.encode(it.w) .. ',"t":' .. it.t .. '}'
  end
end
return '[' .. concat(answer, ',') .. ']'
