//! A socket of the host and the connection that it is joined to, if it is.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::net::{Shutdown, shutdown};

use super::backlog::Backlog;
use super::connection::{Connection, Outgoing, Shut};
use super::packet::{Header, Ports, Slot};
use super::transfer::{receive, send};
use super::watch::{Readiness, Token, Watch};
use crate::virtio::buffers::Buffers;

/// What the socket is joined to.
#[derive(Debug)]
pub(super) enum Stage {
    /// Nothing yet: nobody listened at this port of the guest when it was last asked.
    Waiting {
        /// The guest's port.
        guest_port: u32,
    },
    /// A connection that the guest knows or is to know.
    Joined {
        /// What it goes by.
        ports: Ports,
        /// Where it is.
        connection: Connection,
    },
    /// Nothing any more. The host gets what the guest had sent.
    Draining,
}

/// A socket of the host.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    pub(super) stage: Stage,
    unsent: Backlog,
    /// There may be something to read, as no read has found nothing since.
    readable: bool,
    /// The other end is closed. What it had written may still be unread.
    hung_up: bool,
    /// Room to write is watched for.
    watched_for_room: bool,
    /// Its place among those that have packets for the guest.
    pub(super) turn: Option<u64>,
    /// When the guest has to have confirmed its end.
    pub(super) deadline: Option<u64>,
}

impl Link {
    pub(super) fn new(socket: OwnedFd, stage: Stage) -> Self {
        Self {
            socket,
            stage,
            unsent: Backlog::default(),
            readable: false,
            hung_up: false,
            watched_for_room: false,
            turn: None,
            deadline: None,
        }
    }

    pub(super) fn connection(&mut self) -> Option<&mut Connection> {
        match &mut self.stage {
            Stage::Joined { connection, .. } => Some(connection),
            Stage::Waiting { .. } | Stage::Draining => None,
        }
    }

    /// Whether nobody has any use for it.
    pub(super) fn is_over(&self) -> bool {
        match self.stage {
            Stage::Waiting { .. } => self.hung_up,
            Stage::Joined { .. } => false,
            Stage::Draining => self.unsent.is_empty(),
        }
    }

    /// Whether the guest should get a packet of it.
    pub(super) fn has_packet(&self) -> bool {
        match &self.stage {
            Stage::Joined { connection, .. } => connection.has_packet(self.readable),
            Stage::Waiting { .. } | Stage::Draining => false,
        }
    }

    /// Takes note of what happened to the socket.
    pub(super) fn note(&mut self, readiness: Readiness) {
        self.readable |= readiness.readable;
        if readiness.writable && !self.unsent.is_empty() {
            self.flush();
        }
        if readiness.hung_up {
            self.hung_up = true;
            self.host_receives_no_more();
        }
    }

    /// Watches for room to write as long as something is to be written.
    pub(super) fn watch(&mut self, watch: &Watch, token: Token) {
        let wanted = !self.unsent.is_empty();
        if wanted != self.watched_for_room {
            watch
                .set_writing(self.socket.as_fd(), token, wanted)
                .expect("a watched socket can be watched for more");
            self.watched_for_room = wanted;
        }
    }

    /// Is watched no more.
    pub(super) fn unwatch(&self, watch: &Watch) {
        watch.remove(self.socket.as_fd());
    }

    // --- to the host ------------------------------------------------------

    /// Passes on data: now what the socket takes, the rest when it does.
    pub(super) fn deliver(&mut self, mut data: Buffers<'_>) {
        if self.unsent.is_empty() {
            match retry(|| send(self.socket.as_fd(), &data)) {
                Ok(count) => {
                    data.advance(count);
                    self.forwarded(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.forwarded(length(&data));
                    return self.host_receives_no_more();
                }
            }
        }
        self.unsent.keep(data);
    }

    /// Writes what the socket takes of what it did not take before.
    fn flush(&mut self) {
        while !self.unsent.is_empty() {
            match retry(|| self.unsent.send(self.socket.as_fd())) {
                Ok(count) => {
                    self.unsent.advance(count);
                    self.forwarded(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    let lost = std::mem::take(&mut self.unsent);
                    self.forwarded(lost.len());
                    self.host_receives_no_more();
                }
            }
        }
        self.shut_sending();
    }

    fn forwarded(&mut self, count: usize) {
        if let Some(connection) = self.connection() {
            connection.forwarded(u32::try_from(count).expect("no more than the credit's window"));
        }
    }

    fn host_receives_no_more(&mut self) {
        if let Some(connection) = self.connection() {
            connection.shut(Shut { receiving: true, sending: false });
        }
    }

    /// Shuts of the socket what the guest has shut.
    pub(super) fn shut(&mut self) {
        if self.guest().receiving {
            // It fails where the other end is closed, and then there is nobody to tell.
            let _ = shutdown(&self.socket, Shutdown::Read);
        }
        self.shut_sending();
    }

    /// The host has got all that there ever will be.
    fn shut_sending(&mut self) {
        if self.guest().sending && self.unsent.is_empty() {
            // As above.
            let _ = shutdown(&self.socket, Shutdown::Write);
        }
    }

    fn guest(&mut self) -> Shut {
        self.connection().map(|connection| connection.guest()).unwrap_or_default()
    }

    // --- to the guest -----------------------------------------------------

    /// The header of the next packet, if there is one. Its data is in the slot then.
    pub(super) fn next_packet(&mut self, guest_cid: u64, slot: &Slot<'_>) -> Option<Header> {
        let packet = self.connection()?.next_packet().or_else(|| self.read(slot))?;
        let Stage::Joined { ports, connection } = &mut self.stage else { return None };
        Some(connection.header(guest_cid, *ports, packet))
    }

    /// Reads from the socket; what packet comes of it.
    fn read(&mut self, slot: &Slot<'_>) -> Option<Outgoing> {
        let Stage::Joined { connection, .. } = &mut self.stage else { return None };
        if !self.readable {
            return None;
        }
        let room = connection.room();
        if room == 0 {
            connection.starve();
            return connection.next_packet();
        }
        let part = (room < slot.data.len()).then(|| slot.data.first(widened(room)));
        let data = part.as_ref().unwrap_or(&slot.data);
        match retry(|| receive(self.socket.as_fd(), data)) {
            Ok(count @ 1..) => {
                let count = u32::try_from(count).expect("no more than a packet's data");
                return Some(connection.send(count));
            }
            Ok(0) => connection.shut(Shut { receiving: false, sending: true }),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => connection.shut(Shut { receiving: true, sending: true }),
        }
        self.readable = false;
        connection.next_packet()
    }
}

fn length(data: &Buffers<'_>) -> usize {
    widened(data.len())
}

fn widened(length: u32) -> usize {
    usize::try_from(length).expect("usize has 64 bits")
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
