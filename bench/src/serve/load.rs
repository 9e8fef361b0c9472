//! Clients that cost little themselves: HTTP/1.1 by hand, as much of it as these answers need.

use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// What requests go over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Unix,
    Tls,
}

impl Wire {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unix => "unix",
            Self::Tls => "TLS",
        }
    }
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// How long requests took, in microseconds.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    /// Every request.
    pub(super) whole: Vec<u32>,
    /// Those to create, to run, to delete.
    pub(super) parts: [Vec<u32>; 3],
}

impl Latencies {
    fn note(&mut self, took: Duration) -> u32 {
        let us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.whole.push(us);
        us
    }

    pub(super) fn requests(&self) -> usize {
        self.whole.len()
    }

    pub(super) fn add(&mut self, other: Self) {
        self.whole.extend(other.whole);
        for (all, more) in self.parts.iter_mut().zip(other.parts) {
            all.extend(more);
        }
    }

    pub(super) fn sort(&mut self) {
        self.whole.sort_unstable();
        self.parts.iter_mut().for_each(|part| part.sort_unstable());
    }
}

/// The value at this share of sorted ones, in milliseconds.
pub(super) fn at(sorted: &[u32], share: f64) -> f64 {
    // A share of a count.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let index = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted.get(index).map_or(f64::NAN, |us| f64::from(*us) / 1e3)
}

/// One connection, kept.
pub(super) struct Client {
    stream: Box<dyn Stream>,
    /// Host and Authorization.
    head: String,
    answer: Vec<u8>,
}

impl Client {
    pub(super) fn new(stream: Box<dyn Stream>, token: &str) -> Self {
        let head = format!("host: localhost\r\nauthorization: Bearer {token}\r\n");
        Self { stream, head, answer: Vec::with_capacity(8 << 10) }
    }

    /// One request; gives the body of its answer, which has to be a success.
    pub(super) async fn ask(
        &mut self,
        method: &str,
        target: &str,
        body: &str,
    ) -> Result<&[u8], Failed> {
        let head = &self.head;
        let request = match body {
            "" => format!("{method} {target} HTTP/1.1\r\n{head}\r\n"),
            body => format!(
                "{method} {target} HTTP/1.1\r\n{head}content-type: application/json\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            ),
        };
        self.stream.write_all(request.as_bytes()).await?;
        self.stream.flush().await?;
        self.answer.clear();
        let start = loop {
            if let Some(end) = find(&self.answer, b"\r\n\r\n") {
                break end + 4;
            }
            if self.stream.read_buf(&mut self.answer).await? == 0 {
                return Err("the server closed the connection".into());
            }
        };
        let text = std::str::from_utf8(&self.answer[..start])?;
        let is_success = text.as_bytes().get(9) == Some(&b'2');
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.ok_or_else(|| format!("no content-length: {text}"))?.parse()?;
        while self.answer.len() < start + length {
            if self.stream.read_buf(&mut self.answer).await? == 0 {
                return Err("the answer ended early".into());
            }
        }
        match is_success {
            true => Ok(&self.answer[start..start + length]),
            false => Err(String::from_utf8_lossy(&self.answer).into_owned().into()),
        }
    }

    pub(super) async fn get_until(
        &mut self,
        target: &str,
        end: Instant,
        latencies: &mut Latencies,
    ) -> Result<(), Failed> {
        loop {
            let begun = Instant::now();
            if begun >= end {
                return Ok(());
            }
            self.ask("GET", target, "").await?;
            latencies.note(begun.elapsed());
        }
    }

    /// Asks at fixed moments. A moment that an answer was late for counts from when it was.
    pub(super) async fn get_paced(
        &mut self,
        target: &str,
        first: Instant,
        every: Duration,
        end: Instant,
        latencies: &mut Latencies,
    ) -> Result<(), Failed> {
        let mut due = first;
        while due < end {
            tokio::time::sleep_until(due.into()).await;
            // The timer ticks in milliseconds: what it is late is not the server's.
            let begun = match Instant::now() {
                now if now.duration_since(due) < Duration::from_millis(2) => now,
                _ => due,
            };
            self.ask("GET", target, "").await?;
            latencies.note(begun.elapsed());
            due += every;
        }
        Ok(())
    }

    /// Makes a sandbox, runs a command in it and destroys it.
    pub(super) async fn cycle(&mut self, latencies: &mut Latencies) -> Result<(), Failed> {
        let begun = Instant::now();
        let made = self.ask("POST", "/v1/sandboxes", CREATE).await?;
        let made: serde_json::Value = serde_json::from_slice(made)?;
        let took = latencies.note(begun.elapsed());
        latencies.parts[0].push(took);
        let target = format!("/v1/sandboxes/{}", made["id"].as_str().unwrap_or_default());

        let begun = Instant::now();
        let ran = self.ask("POST", &format!("{target}/exec"), EXEC).await?;
        if find(ran, b"\"exit_code\":0").is_none() {
            return Err(format!("the command failed: {}", String::from_utf8_lossy(ran)).into());
        }
        let took = latencies.note(begun.elapsed());
        latencies.parts[1].push(took);

        let begun = Instant::now();
        self.ask("DELETE", &target, "").await?;
        let took = latencies.note(begun.elapsed());
        latencies.parts[2].push(took);
        Ok(())
    }
}

pub(super) const CREATE: &str =
    r#"{"engine":"mock","memory_mb":128,"labels":{"job":"bench"},"timeout_sec":600}"#;
const EXEC: &str = r#"{"command":["true"],"timeout_sec":60}"#;

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
