//! Processes under way: their output out, their input in, and their ends.

use std::os::fd::AsFd as _;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use wire::frame::MAX_DATA;
use wire::op::{Done, ErrorCode, ExecReply, OpError};

use super::followers::still_running;
use super::{Channel, Follower, ProcessId, Role, Server, set_watch, take_feed, token};
use crate::process::{Deadline, Sink};
use crate::task::{End, Progress};

/// Bytes of one output that are moved before other events get their turn.
const TURN: usize = 4 * MAX_DATA;

impl Server {
    pub(super) fn advance(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(task) = &mut process.task else { return };
        match task.advance() {
            Progress::Pending => {}
            Progress::Started => {
                process.has_started = true;
                let waits_for_start =
                    if process.is_detached() { process.stream.take() } else { None };
                if let Some(stream) = waits_for_start {
                    self.reply(stream, &still_running());
                }
                self.feed(id);
            }
            Progress::Ended => {
                process.has_ended = true;
                // Its event stays readable, and the rest of the output may take a while.
                let _ = epoll::delete(&self.epoll, task.as_fd());
                process.deadline = Deadline::None;
                self.settle(id);
            }
        }
    }

    /// Moves output from a process to its sink, as far as there is both.
    pub(super) fn pump(&mut self, id: ProcessId, channel: Channel) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let source = match channel {
            Channel::Stderr => &mut process.stderr,
            _ => &mut process.stdout,
        };
        let Some(fd) = &source.fd else { return };
        let mut moved = 0;
        let mut open = true;
        let mut has_room = true;
        while moved < TURN {
            let room = match (&source.sink, self.session.connection()) {
                (Sink::Stream(stream), Some(connection)) => {
                    // Output that the host gave up on goes nowhere.
                    if connection.is_writable(*stream) {
                        connection.room(*stream)
                    } else {
                        MAX_DATA
                    }
                }
                _ => MAX_DATA,
            };
            if room == 0 {
                has_room = false;
                break;
            }
            let mut bytes = Vec::with_capacity(room.min(MAX_DATA));
            match rustix::io::read(fd, rustix::buffer::spare_capacity(&mut bytes)) {
                Ok(0) => open = false,
                Ok(count) => {
                    moved += count;
                    match (&mut source.sink, self.session.connection()) {
                        (Sink::Stream(stream), Some(connection)) => {
                            connection.send(*stream, bytes);
                        }
                        (Sink::Log(log), _) => log.push(&bytes),
                        _ => {}
                    }
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {}
                // A terminal's last user has closed it.
                Err(_) => open = false,
            }
            break;
        }
        let is_log = matches!(source.sink, Sink::Log(_));
        if open {
            set_watch(&self.epoll, source, token(id, channel), has_room);
        } else {
            set_watch(&self.epoll, source, token(id, channel), false);
            source.fd = None;
            if let Sink::Stream(stream) = source.sink
                && channel == Channel::Stderr
            {
                self.streams.remove(&stream);
                if let Some(connection) = self.session.connection() {
                    connection.close(stream, Vec::new());
                }
            }
        }
        if is_log {
            self.follow_all(id);
        }
        if !open {
            self.settle(id);
        }
    }

    pub(super) fn stop_reading(&mut self, id: ProcessId, channel: Channel) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let source = match channel {
            Channel::Stderr => &mut process.stderr,
            _ => &mut process.stdout,
        };
        source.sink = Sink::None;
        set_watch(&self.epoll, source, token(id, channel), source.fd.is_some());
    }

    pub(super) fn feed(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        // Before that, the terminal is nobody's: it would turn a ^C into nothing.
        if process.stdin.is_terminal() && !process.has_started && !process.has_ended {
            return;
        }
        let feed = &mut process.stdin;
        let watched = feed.watched;
        if watched && let Some(fd) = &feed.fd {
            let _ = epoll::delete(&self.epoll, fd);
        }
        feed.watched = feed.pump(self.session.connection());
        if feed.watched
            && let Some(fd) = &feed.fd
        {
            let _ = epoll::add(&self.epoll, fd, token(id, Channel::Stdin), EventFlags::OUT);
        }
        if feed.is_drained() && feed.fd.is_none() {
            let feeders: Vec<_> = self
                .streams
                .iter()
                .filter(|(_, role)| matches!(role, Role::Feeder(process) if *process == id))
                .map(|(stream, _)| *stream)
                .collect();
            for stream in feeders {
                self.reply(stream, &Done {});
            }
        }
    }

    /// Once a process has ended and all its output was read: the reply.
    fn settle(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        if !process.has_ended || !process.is_silent() {
            return;
        }
        let Some(task) = process.task.take() else { return };
        take_feed(&self.epoll, &mut process.stdin);
        let ended = self.sandbox.finish(task);
        let outcome = match ended.end {
            End::Command(outcome) => Ok(process.judge(outcome)),
            End::Tool(reply) => Err(reply),
            End::Failed(error) => Err(Err(error)),
        };
        let stream = process.stream.take();
        match outcome {
            Ok(outcome) => {
                let reply = ExecReply {
                    outcome,
                    cpu_usec: ended.cpu_usec,
                    memory_peak_bytes: ended.memory_peak_bytes,
                    dropped: (0, 0),
                };
                if let Some(stream) = stream {
                    self.reply(stream, &reply);
                    self.forget(id);
                } else if process.is_detached() {
                    process.reply = Some(reply);
                    self.feed(id);
                    self.follow_all(id);
                } else {
                    self.forget(id);
                }
            }
            Err(verdict) => {
                match (stream, verdict) {
                    (Some(stream), Ok(reply)) => self.reply(stream, &reply),
                    (Some(stream), Err(error)) => self.refuse(stream, &error),
                    (None, _) => {}
                }
                self.forget(id);
            }
        }
    }

    /// Ends a process that nobody waits for any more.
    pub(super) fn abandon(&mut self, id: ProcessId) {
        if let Some(process) = self.processes.get_mut(&id)
            && let Some(task) = process.task.take()
        {
            if !process.has_ended {
                let _ = epoll::delete(&self.epoll, task.as_fd());
            }
            let input = take_feed(&self.epoll, &mut process.stdin);
            self.sandbox.abandon(task, input);
        }
        self.forget(id);
    }

    pub(super) fn forget(&mut self, id: ProcessId) {
        let Some(mut process) = self.processes.remove(&id) else { return };
        for source in [&mut process.stdout, &mut process.stderr] {
            set_watch(&self.epoll, source, EventData::new_u64(0), false);
        }
        take_feed(&self.epoll, &mut process.stdin);
        let orphans: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, role)| match role {
                Role::Owner(process) | Role::Stderr(process) | Role::Feeder(process) => {
                    *process == id
                }
                Role::Follower(follower) => follower.process == id,
                Role::FollowerStderr(_) => false,
            })
            .map(|(stream, _)| *stream)
            .collect();
        for stream in orphans {
            let gone = OpError::new(ErrorCode::NotFound, "the process is gone");
            if let Some(Role::Follower(Follower { stderr: Some((stderr, _)), .. })) =
                self.streams.get(&stream)
            {
                let stderr = *stderr;
                self.refuse(stderr, &gone);
            }
            self.refuse(stream, &gone);
        }
    }
}
