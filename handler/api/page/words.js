// What the page says: states, errors, times and sizes in words.

export const ENDED = new Set(["completed", "failed", "cancelled"]);

const ERRORS = {
	INVALID_REQUEST: "The request is not right.",
	NOT_FOUND: "There is no such task, or no longer.",
	CONFLICT: "It is too late for that.",
	MODEL_UNAVAILABLE: "The model is not available right now.",
	OUT_OF_MEMORY: "The picture is too large for the machine that draws.",
	UNSAFE_CONTENT: "The model's safety checker held the picture back.",
	TIMED_OUT: "It took too long.",
	RETRIES_EXHAUSTED: "It was tried several times and given up.",
	QUOTA_EXCEEDED: "The budget for today is used up.",
	INTERNAL: "Something broke on the server's side.",
};

export const errorWords = (code) => ERRORS[code] ?? "That did not work.";

// What went wrong with a call: a Refused, or no answer at all.
export const failure = (fault) => (fault.code === undefined
	? "There is no answer: nobody knows whether it was done."
	: `${errorWords(fault.code)} (${fault.message})${fault.again ? ` Try again in ${fault.again} s.` : ""}`);

export const label = (status) => ({
	pending: "In the queue", processing: "Developing", completed: "Developed", failed: "Failed", cancelled: "Cancelled",
})[status] ?? status;

export function seconds(value) {
	if (value < 1) return `${Math.round(value * 1000)} ms`;
	if (value < 60) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
	return `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
}

// A guess does not deserve more than this.
const about = (value) => (value > 90 ? `about ${Math.round(value / 60)} min` : `about ${Math.max(1, Math.round(value))} s`);

export function bytes(value) {
	if (value < 1000) return `${value} bytes`;
	return value < 1e6 ? `${(value / 1000).toFixed(1)} kB` : `${(value / 1e6).toFixed(1)} MB`;
}

export const when = (text) => text && new Date(text).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });

// Where a task is and how it goes on, by the clock of this page; `frozen` while nobody can tell.
export function stateWords({ task, taken }, now, frozen) {
	const { status, progress } = task;
	if (ENDED.has(status)) return label(status);
	if (frozen) return `${label(status)}, when last heard of`;
	if (status === "pending") {
		const waits = Math.round((now - Date.parse(task.queued_at ?? task.created_at)) / 1000);
		return `${task.attempt > 0 ? "Waits for another try" : label(status)}${waits > 1 ? `, ${waits < 90 ? `${waits} s` : about(waits).slice(6)}` : ""}`;
	}
	if (!progress) return "Being prepared";
	if (progress.eta_seconds === null) return `Step ${progress.step} of ${progress.steps}`;
	return `${about(progress.eta_seconds - (now - taken) / 1000)} left`;
}

const FIELDS = {
	prompt: "Prompt", negative_prompt: "Keep out", num_inference_steps: "Steps", guidance_scale: "Guidance", num_images: "Pictures", output_format: "Format",
};
// As the field is called on the page: "width" is Width, "num_images" Pictures.
export const fieldName = (field) => FIELDS[field] ?? (field[0].toUpperCase() + field.slice(1)).replaceAll("_", " ");
