//! What `--json` and `--json-file` say about a run.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Serialize, Serializer};
use wire::op::Outcome;

/// The whole of it; holds neither variables nor their names.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) exit: Exit,
    pub(crate) sandbox: String,
    pub(crate) name: String,
    pub(crate) engine: String,
    pub(crate) isolation: String,
    /// Of the signed operation.
    pub(crate) digest: Option<String>,
    pub(crate) timings: Timings,
    pub(crate) cpu_usec: u64,
    pub(crate) memory_peak_bytes: u64,
    pub(crate) kept: bool,
    #[serde(flatten)]
    pub(crate) output: Option<Captured>,
}

/// How the command ended.
#[derive(Debug, Serialize)]
pub(crate) struct Exit {
    /// Our own exit status.
    pub(crate) code: u8,
    pub(crate) result: &'static str,
    pub(crate) signal: Option<i32>,
}

impl Exit {
    pub(crate) fn of_outcome(outcome: &Outcome) -> Self {
        let (result, signal) = match outcome {
            Outcome::Running => ("running", None),
            Outcome::Exited { .. } => ("exited", None),
            Outcome::Signaled { signal } => ("signaled", Some(*signal)),
            Outcome::TimedOut { signal } => ("timed_out", Some(*signal)),
            Outcome::OutOfMemory { .. } => ("out_of_memory", Some(9)),
            Outcome::NotFound { .. } => ("not_found", None),
            Outcome::NotExecutable { .. } => ("not_executable", None),
        };
        Self { code: crate::exit::of_outcome(outcome), result, signal }
    }
}

/// Where the time went, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Timings {
    pub(crate) prepare_ms: f64,
    pub(crate) process_ms: f64,
    pub(crate) kernel_ms: f64,
    pub(crate) agent_ms: f64,
    pub(crate) workspace_ms: f64,
    pub(crate) exec_ms: f64,
    pub(crate) collect_ms: f64,
    pub(crate) teardown_ms: f64,
    pub(crate) total_ms: f64,
}

impl Timings {
    /// Each phase with its name.
    pub(crate) fn phases(&self) -> [(&'static str, f64); 9] {
        [
            ("prepare", self.prepare_ms),
            ("process", self.process_ms),
            ("kernel", self.kernel_ms),
            ("agent", self.agent_ms),
            ("workspace", self.workspace_ms),
            ("exec", self.exec_ms),
            ("collect", self.collect_ms),
            ("teardown", self.teardown_ms),
            ("total", self.total_ms),
        ]
    }
}

/// Microseconds are as fine as these figures are good for.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The command's output, as far as it was kept.
#[derive(Debug, Serialize)]
pub(crate) struct Captured {
    stdout: Bytes,
    stderr: Bytes,
    stdout_bytes: u64,
    stderr_bytes: u64,
    truncated: bool,
}

impl Captured {
    pub(crate) fn new(stdout: (Vec<u8>, u64), stderr: (Vec<u8>, u64)) -> Self {
        let truncated = [&stdout, &stderr].iter().any(|(kept, total)| (kept.len() as u64) < *total);
        Self {
            stdout_bytes: stdout.1,
            stderr_bytes: stderr.1,
            truncated,
            stdout: Bytes(stdout.0),
            stderr: Bytes(stderr.0),
        }
    }
}

/// A plain string where it is UTF-8, `{"base64":"…"}` where it is not.
#[derive(Debug)]
struct Bytes(Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Encoded {
            base64: String,
        }
        match str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => Encoded { base64: BASE64.encode(&self.0) }.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn output_is_text_where_it_can_be() {
        let captured = Captured::new((b"hi\n".to_vec(), 3), (vec![0xff], 1));
        assert_eq!(
            serde_json::to_value(captured).unwrap(),
            json!({
                "stdout": "hi\n", "stderr": {"base64": "/w=="},
                "stdout_bytes": 3, "stderr_bytes": 1, "truncated": false,
            })
        );
    }

    #[test]
    fn what_was_cut_is_said_to_be() {
        let captured = Captured::new((b"ab".to_vec(), 3), (Vec::new(), 0));
        let value = serde_json::to_value(captured).unwrap();
        assert_eq!(value["truncated"], json!(true));
        assert_eq!(value["stdout_bytes"], json!(3));
    }

    #[test]
    fn an_end_by_signal_tells_which() {
        let exit = Exit::of_outcome(&Outcome::TimedOut { signal: 15 });
        assert_eq!(
            serde_json::to_value(exit).unwrap(),
            json!({"code": 124, "result": "timed_out", "signal": 15})
        );
    }
}
