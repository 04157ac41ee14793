// What the model takes: GET /models, as the form wants it.

// {id, pipeline, status, reason, parameters: [{name, type, default, least, most, multiple_of, one_of}]}, or null.
export async function readCard(api) {
	const { data } = await api.call("GET", "models");
	const model = data.models[0];
	return model ? { ...model, parameters: [...model.parameters, { name: "tags", type: "string" }] } : null;
}
