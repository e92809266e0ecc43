-- Sends the MR series of every stable study to qsm-edge; the results come back by C-STORE as to any PACS.
-- orthanc.json:  "LuaScripts": ["/etc/orthanc/qsm-edge.lua"],
--                "DicomModalities": {"qsm-edge": ["QSMEDGE", "127.0.0.1", 11112]}

local PEER = 'qsm-edge'
-- Metadata of a series (Orthanc leaves the numbers from 1024 on to its users): how many of its images were handed over.
local HANDED_OVER = '1024'

-- Results that come back make the study stable again; they are known by their maker, and what went before by its count.
local function due(id)
  local series = ParseJson(RestApiGet('/series/' .. id))
  local tags, count = series['MainDicomTags'], tostring(#series['Instances'])
  if tags['Modality'] ~= 'MR' or string.lower(tags['Manufacturer'] or '') == 'qsm-edge' then
    return nil
  end
  for _, name in pairs(ParseJson(RestApiGet('/series/' .. id .. '/metadata'))) do
    if name == HANDED_OVER and RestApiGet('/series/' .. id .. '/metadata/' .. HANDED_OVER) == count then
      return nil
    end
  end
  return count
end

function OnStableStudy(studyId, tags, metadata)
  local resources, counts = {}, {}
  for _, id in pairs(ParseJson(RestApiGet('/studies/' .. studyId))['Series']) do
    local count = due(id)
    if count ~= nil then
      table.insert(resources, id)
      counts[id] = count
    end
  end
  if #resources == 0 then
    return
  end
  -- A job of its own: Orthanc goes on, and shows at /jobs what became of it.
  local order = {Resources = resources, Asynchronous = true, Permissive = false}
  RestApiPost('/modalities/' .. PEER .. '/store', DumpJson(order, true))
  for id, count in pairs(counts) do
    RestApiPut('/series/' .. id .. '/metadata/' .. HANDED_OVER, count)
  end
end
