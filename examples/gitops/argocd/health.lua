-- Health of all kinds of finetune.dev for Argo CD, from the conditions that kstatus reads (docs/conditions.md).
-- An object is in exactly one state: Stalled, Suspended, Reconciling or Ready. Records that need no work, such as a
-- DatasetVersion, have none of these conditions and are healthy.
local health = {}
local status = obj.status
if status == nil or status.observedGeneration ~= obj.metadata.generation then
  health.status = "Progressing"
  health.message = "Waiting for the operator to observe the latest change"
  return health
end

local function describe(condition)
  return (condition.reason or "") .. ": " .. (condition.message or "")
end

local conditions = {}
if status.conditions ~= nil then
  for _, condition in ipairs(status.conditions) do
    conditions[condition.type] = condition
  end
end

local states = {
  {condition = "Stalled", health = "Degraded"},
  {condition = "Suspended", health = "Suspended"},
  {condition = "Reconciling", health = "Progressing"},
}
for _, state in ipairs(states) do
  local condition = conditions[state.condition]
  if condition ~= nil and condition.status == "True" then
    health.status = state.health
    health.message = describe(condition)
    return health
  end
end

local ready = conditions["Ready"]
if ready ~= nil and ready.status ~= "True" then
  health.status = "Progressing"
  health.message = describe(ready)
  return health
end
health.status = "Healthy"
if ready ~= nil then
  health.message = describe(ready)
end
return health
