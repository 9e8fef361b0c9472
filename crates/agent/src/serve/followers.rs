//! Kept output of detached processes, for whoever attaches.

use wire::connection::WINDOW;
use wire::frame::StreamId;
use wire::op::{ExecReply, Outcome};

use super::{ProcessId, Role, Server};
use crate::process::Sink;

impl Server {
    pub(super) fn follow_all(&mut self, id: ProcessId) {
        let followers: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, role)| matches!(role, Role::Follower(f) if f.process == id))
            .map(|(stream, _)| *stream)
            .collect();
        for stream in followers {
            self.follow(stream);
        }
    }

    /// Sends a follower what it has not had, and its reply once there is no more to come.
    pub(super) fn follow(&mut self, id: StreamId) {
        let Some(Role::Follower(follower)) = self.streams.get_mut(&id) else { return };
        let Some(process) = self.processes.get(&follower.process) else { return };
        let Some(connection) = self.session.connection() else { return };
        let mut send = |stream: StreamId, sink: &Sink, offset: &mut u64, dropped: &mut u64| {
            let Sink::Log(log) = sink else { return true };
            while *offset < log.end() {
                let room = connection.room(stream).min(WINDOW);
                if room == 0 {
                    return false;
                }
                let (from, bytes) = log.read(*offset, room);
                *dropped += from - *offset;
                *offset = from + bytes.len() as u64;
                connection.send(stream, bytes);
            }
            true
        };
        let mut complete =
            send(id, &process.stdout.sink, &mut follower.stdout_offset, &mut follower.dropped.0);
        if let Some((stderr, offset)) = &mut follower.stderr {
            complete &= send(*stderr, &process.stderr.sink, offset, &mut follower.dropped.1);
        }
        if !complete || (follower.follow && process.reply.is_none()) {
            return;
        }
        let mut reply = process.reply.clone().unwrap_or_else(still_running);
        reply.dropped = follower.dropped;
        if let Some((stderr, _)) = follower.stderr {
            connection.close(stderr, Vec::new());
            self.streams.remove(&stderr);
        }
        self.reply(id, &reply);
    }
}

pub(super) fn still_running() -> ExecReply {
    ExecReply { outcome: Outcome::Running, cpu_usec: 0, memory_peak_bytes: 0, dropped: (0, 0) }
}
