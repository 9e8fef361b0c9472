//! Walks along a chain, and says which of its records are not what they were.
//!
//! What it remembers does not grow with the chain.

use api::{AuditReport, Checkpoint, Fault, FaultKind};
use ed25519_dalek::VerifyingKey;

use crate::digest::from_hex;
use crate::row::Row;
use crate::{Digest, checkpoint};

/// Faults that are told one by one.
const MOST_FAULTS: usize = 100;
/// Places at which a record that stands in the wrong one is looked for.
const MOST_PLACES: usize = 512;

/// A record that is not what its hash says, to be looked at again when its kin are known.
struct Suspect {
    row: Row,
    why: &'static str,
}

/// Records of which one at least is not what was signed.
struct Unsigned {
    from: u64,
    to: u64,
    signed: Digest,
}

pub(crate) struct Scanner {
    /// Who must have signed; anybody where it is absent.
    trusted: Option<VerifyingKey>,
    /// The place that comes next; any where it is absent.
    next: Option<u64>,
    /// The hash that the next record follows; not known where it is absent.
    prev: Option<Digest>,
    /// The last place, and the hash of its record where that is sound.
    last: Option<(u64, Option<Digest>)>,
    /// This record is sound by itself, but follows another than the one before it. Which of the
    /// two is false, the next one tells.
    doubtful: Option<u64>,
    /// The last record is not the one whose head was signed. Whether the chain goes on from the
    /// signed one, the next record tells.
    unsigned: Option<Unsigned>,
    /// Up to here, a signature was compared.
    signed: u64,
    /// Lines that could not be read since the last record: each stands for one.
    unread: u64,
    first: Option<u64>,
    head: Option<Digest>,
    records: u64,
    checkpoints: u64,
    suspects: Vec<Suspect>,
    missing: Vec<u64>,
    faults: Vec<Fault>,
    any_fault: bool,
}

impl Scanner {
    /// Begins after a record: `next` is the first place, `prev` the hash before it, where they
    /// are known.
    pub(crate) fn new(
        next: Option<u64>,
        prev: Option<Digest>,
        trusted: Option<VerifyingKey>,
    ) -> Self {
        Self {
            trusted,
            next,
            prev,
            last: None,
            doubtful: None,
            unsigned: None,
            signed: next.map_or(0, |next| next.saturating_sub(1)),
            unread: 0,
            first: None,
            head: None,
            records: 0,
            checkpoints: 0,
            suspects: Vec::new(),
            missing: Vec::new(),
            faults: Vec::new(),
            any_fault: false,
        }
    }

    /// The place that comes next, where it is known.
    pub(crate) fn next(&self) -> Option<u64> {
        self.next
    }

    /// The hash of the last record, where it is sound.
    pub(crate) fn sound_head(&self) -> Option<(u64, Digest)> {
        self.last.and_then(|(seq, hash)| Some((seq, hash?)))
    }

    /// Whether anything was found so far.
    pub(crate) fn has_faults(&self) -> bool {
        self.any_fault
            || !self.suspects.is_empty()
            || self.doubtful.is_some()
            || self.unsigned.is_some()
    }

    pub(crate) fn fault(&mut self, seq: u64, kind: FaultKind, detail: impl Into<String>) {
        self.any_fault = true;
        let told = self.faults.iter().any(|fault| fault.seq == seq && fault.kind == kind);
        if !told && self.faults.len() < MOST_FAULTS {
            self.faults.push(Fault { seq, kind, detail: detail.into() });
        }
    }

    /// A record at its place.
    pub(crate) fn record(&mut self, row: Row) {
        let seq = row.seq;
        if !self.step(seq) {
            return;
        }
        if let Some(signed) = self.name_unsigned(Some(row.prev_hash)) {
            self.prev = Some(signed);
        }
        let linked = self.prev.is_none_or(|prev| prev == row.prev_hash);
        let own = row.hash_at(seq, row.prev_hash) == row.hash;
        let settled = self.settle(linked);
        self.head = Some(row.hash);
        self.last = Some((seq, own.then_some(row.hash)));
        match (own, self.prev) {
            (true, _) => {
                if !linked && !settled {
                    self.doubtful = Some(seq);
                }
                self.prev = Some(row.hash);
            }
            (false, Some(prev)) if row.hash_at(seq, prev) == row.hash => {
                self.fault(seq, FaultKind::Changed, "its prev_hash was changed");
                self.prev = Some(row.hash);
                self.last = Some((seq, Some(row.hash)));
            }
            (false, _) => {
                self.prev = None;
                self.suspect(row, "its content does not have its hash");
            }
        }
    }

    /// A record that cannot be read; with its place, where that is known.
    pub(crate) fn unreadable(&mut self, seq: Option<u64>, why: &str) {
        self.name_unsigned(None);
        match seq {
            Some(seq) => {
                if self.step(seq) {
                    self.settle(false);
                    self.fault(seq, FaultKind::Changed, format!("it cannot be read: {why}"));
                    self.last = Some((seq, None));
                    self.prev = None;
                }
            }
            None => {
                let place = self.next.unwrap_or(1) + self.unread;
                self.unread += 1;
                self.settle(false);
                self.fault(place, FaultKind::Changed, format!("it cannot be read: {why}"));
                self.prev = None;
            }
        }
    }

    /// A signed head. It comes right after the record that it is of.
    pub(crate) fn checkpoint(&mut self, checkpoint: &Checkpoint) {
        let seq = checkpoint.seq;
        let hash = match self.authentic(checkpoint) {
            Ok(hash) => hash,
            Err(why) => return self.fault(seq, FaultKind::BadCheckpoint, why),
        };
        if self.doubtful == Some(seq) {
            let linked = self.last.is_some_and(|(_, last)| last == Some(hash));
            self.settle(linked);
        }
        // Whether a record that is missing or not sound is told elsewhere.
        let Some((last, Some(found))) = self.last else { return };
        // The database and the file may both have the same head.
        if last != seq || self.unsigned.is_some() {
            return;
        }
        self.checkpoints += 1;
        let begin = self.signed + 1;
        self.signed = seq;
        let told = |fault: &Fault| (begin..=seq).contains(&fault.seq);
        if found != hash && !self.faults.iter().any(told) {
            self.unsigned = Some(Unsigned { from: begin, to: seq, signed: hash });
        }
    }

    /// Names the records that are not what was signed, now that the next one is known. Gives the
    /// signed hash where that is the one that is followed.
    fn name_unsigned(&mut self, followed: Option<Digest>) -> Option<Digest> {
        let Unsigned { from, to, signed } = self.unsigned.take()?;
        if followed == Some(signed) {
            self.fault(to, FaultKind::Changed, "it is not the record whose hash was signed");
            return Some(signed);
        }
        let detail = format!("records {from} to {to} are not those whose head was signed");
        self.fault(from, FaultKind::Changed, detail);
        None
    }

    /// A signed head that the chain does not reach.
    pub(crate) fn beyond(&mut self, checkpoint: &Checkpoint, whose: &str) {
        let seq = checkpoint.seq;
        match self.authentic(checkpoint) {
            Err(why) => self.fault(seq, FaultKind::BadCheckpoint, format!("{whose}: {why}")),
            Ok(_) => self.truncated(seq, whose),
        }
    }

    /// The chain goes on up to `seq`, as `whose` says, and is not there.
    pub(crate) fn truncated(&mut self, seq: u64, whose: &str) {
        let begin = self.next.unwrap_or(1);
        self.fault(
            begin,
            FaultKind::Truncated,
            format!("records {begin} to {seq} are missing: {whose} is of record {seq}"),
        );
    }

    fn authentic(&self, checkpoint: &Checkpoint) -> Result<Digest, String> {
        match &self.trusted {
            Some(key) => checkpoint::verify(checkpoint, key),
            None => {
                let key = from_hex(&checkpoint.public_key)
                    .and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok())
                    .ok_or("its public key is none")?;
                checkpoint::verify(checkpoint, &key)
            }
        }
    }

    /// Leaves out what is told elsewhere, and goes on after `last`, whose hash is `hash`.
    pub(crate) fn skip_to(&mut self, last: u64, hash: Option<Digest>) {
        self.settle(true);
        self.name_unsigned(hash);
        self.next = Some(last + 1);
        self.prev = hash;
        self.last = Some((last, hash));
        self.signed = last;
    }

    /// Records that are not there.
    pub(crate) fn removed(&mut self, from: u64, to: u64) {
        let detail = match from == to {
            true => "it is missing".to_owned(),
            false => format!("records {from} to {to} are missing"),
        };
        self.fault(from, FaultKind::Removed, detail);
        let room = MOST_PLACES.saturating_sub(self.missing.len());
        self.missing.extend((from..=to).take(room));
    }

    /// Goes on to the record of place `seq`. Whether it stands where it may.
    fn step(&mut self, seq: u64) -> bool {
        self.records += 1;
        self.first.get_or_insert(seq);
        let unread = std::mem::take(&mut self.unread);
        match self.next {
            Some(next) if seq < next => {
                self.unread = unread;
                self.fault(
                    seq,
                    FaultKind::Reordered,
                    format!("it stands after record {}", next.saturating_sub(1)),
                );
                return false;
            }
            Some(next) if seq > next => {
                self.settle(true);
                self.name_unsigned(None);
                let from = next + unread;
                if from < seq {
                    self.removed(from, seq - 1);
                }
                self.prev = None;
            }
            _ => {}
        }
        self.next = Some(seq + 1);
        true
    }

    /// Says which record was false where two did not fit: the one before, where what follows
    /// fits the one after. Whether there were such two.
    fn settle(&mut self, linked: bool) -> bool {
        let Some(seq) = self.doubtful.take() else { return false };
        if linked {
            let detail = format!(
                "its hash is not the one that record {seq} follows; others before it may be \
                 false too, back to record {}",
                self.signed + 1
            );
            self.fault(seq - 1, FaultKind::Changed, detail);
        } else {
            self.fault(seq, FaultKind::Changed, "it follows another record than its neighbours");
        }
        true
    }

    fn suspect(&mut self, row: Row, why: &'static str) {
        if self.suspects.len() < MOST_FAULTS {
            self.suspects.push(Suspect { row, why });
        } else {
            self.fault(row.seq, FaultKind::Changed, why);
        }
    }

    pub(crate) fn finish(mut self) -> AuditReport {
        self.settle(true);
        self.name_unsigned(None);
        self.place_suspects();
        self.faults.sort_by_key(|fault| fault.seq);
        self.faults.truncate(MOST_FAULTS);
        AuditReport {
            ok: !self.any_fault,
            from: self.first,
            to: self.last.map(|(seq, _)| seq),
            records: self.records,
            checkpoints: self.checkpoints,
            head_hash: self.head.map(|hash| hash.to_string()),
            faults: self.faults,
        }
    }

    /// A record that has its hash at another place was moved from there.
    fn place_suspects(&mut self) {
        let suspects = std::mem::take(&mut self.suspects);
        let mut places: Vec<u64> = suspects.iter().map(|suspect| suspect.row.seq).collect();
        // Where many were renumbered, the last one's own place is beyond those that are listed.
        places.extend(places.last().map(|last| last + 1));
        places.append(&mut self.missing);
        let mut homes = Vec::new();
        let mut strangers = Vec::new();
        for Suspect { row, why } in &suspects {
            let near = [row.seq.wrapping_sub(1), row.seq + 1];
            let home = near
                .iter()
                .chain(&places)
                .copied()
                .find(|&place| row.hash_at(place, row.prev_hash) == row.hash);
            match home {
                Some(home) => {
                    homes.push(home);
                    strangers.push(row.seq);
                    let detail = format!("what stands there is record {home}");
                    self.fault(row.seq, FaultKind::Reordered, detail);
                }
                None => self.fault(row.seq, FaultKind::Changed, *why),
            }
        }
        // Others stand in its place, and it stands nowhere.
        for place in strangers {
            if !homes.contains(&place) {
                self.fault(place, FaultKind::Removed, "it is missing: others were moved up");
            }
        }
    }
}
