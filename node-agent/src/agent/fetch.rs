//! How inputs come to an agent: read from the cache, sent by peers, or gathered from partial sums; and what it answers
//! when peers ask.

use std::collections::VecDeque;

use shared::farm::{
    contributions::Contributions,
    ids::{AccumulatorId, AgentId, ContentHash, TaskId},
    message::{Cause, FromAgent, InputError, Name, Try},
    work::WorkError,
};

use super::{Action, Agent, Answer, Parcel, Piece, Source};
use crate::store::State;

/// A block on its way from peers.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    requests: Vec<u64>,
    /// The stage of the plan that it is for.
    of_stage: u16,
    /// Who has sent something last.
    last: Option<AgentId>,
    /// Who else has the block.
    others: VecDeque<AgentId>,
    /// Frames or answers still awaited.
    pending: usize,
    pieces: Vec<(Piece, Contributions, u64)>,
    gathering: bool,
}

/// What a fetched block was cut from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Origin {
    Task(TaskId),
    Sum(AccumulatorId),
}

impl<W: Clone> Agent<W> {
    /// Sets a block on its way; its room is taken already.
    pub(super) fn fetch(&mut self, name: Name, holders: &[AgentId], of_stage: u16) {
        let mut incoming = Incoming {
            of_stage,
            ..Incoming::default()
        };
        match name {
            Name::Input(hash) => {
                self.loads.push_back((hash, of_stage));
                self.load();
            }
            Name::Result { task, .. } => {
                self.fetched
                    .entry(Origin::Task(task))
                    .or_default()
                    .push(name);
                let agents = || holders.iter().filter(|h| **h != AgentId::COORDINATOR);
                incoming.others = agents().copied().collect();
                // Not everybody asks the same one; and the coordinator only when there is nobody else.
                let count = incoming.others.len().max(1);
                incoming.others.rotate_left(self.me.0 as usize % count);
                if holders.contains(&AgentId::COORDINATOR) {
                    incoming.others.push_back(AgentId::COORDINATOR);
                }
                self.ask_next(name, &mut incoming);
                self.incoming.insert(name, incoming);
            }
            Name::Chunk {
                accumulator, part, ..
            } => {
                self.fetched
                    .entry(Origin::Sum(accumulator))
                    .or_default()
                    .push(name);
                for &holder in holders {
                    self.ask(holder, name, &mut incoming);
                }
                let bytes = 0;
                match self.partials.seal(accumulator, part) {
                    Some(copies) => incoming.pieces.extend(
                        copies
                            .into_iter()
                            .map(|(copy, set)| (Piece::Copy(copy), set, bytes)),
                    ),
                    // A fold is still running on a sum said to be complete: this cannot be right; the sets will tell.
                    None => tracing::warn!(?name, "asked for while it is being added to"),
                }
                self.incoming.insert(name, incoming);
                self.gather(name);
            }
        }
    }

    /// Asks the next one who may have the block. When there is none, whoever waits for it is given back: the coordinator
    /// knows better.
    fn ask_next(&mut self, name: Name, incoming: &mut Incoming) {
        match incoming.others.pop_front() {
            Some(holder) => self.ask(holder, name, incoming),
            None => {
                self.misfits.push(name);
                self.dirty = true;
            }
        }
    }

    /// That peer will not answer what it was asked.
    pub(super) fn peer_gone(&mut self, peer: AgentId) {
        let mut open: Vec<(u64, Name)> = self
            .requests
            .iter()
            .filter(|(_, (_, asked))| *asked == peer)
            .map(|(request, (name, _))| (*request, *name))
            .collect();
        if open.is_empty() {
            return;
        }
        open.sort_unstable();
        for (request, name) in open {
            self.requests.remove(&request);
            self.links.closed(peer);
            self.not_from_there(name);
        }
        self.tell(FromAgent::Unreachable(peer));
    }

    fn not_from_there(&mut self, name: Name) {
        let Some(mut incoming) = self.incoming.remove(&name) else {
            return;
        };
        match name {
            Name::Input(_) | Name::Result { .. } => self.ask_next(name, &mut incoming),
            // Every piece of a sum is with one agent only.
            Name::Chunk { .. } => {
                self.misfits.push(name);
                self.dirty = true;
            }
        }
        self.incoming.insert(name, incoming);
    }

    fn ask(&mut self, peer: AgentId, name: Name, incoming: &mut Incoming) {
        let request = self.next_request;
        self.next_request += 1;
        self.requests.insert(request, (name, peer));
        self.links.asked(self.now, peer);
        incoming.requests.push(request);
        incoming.pending += 1;
        self.actions.push_back(Action::Ask {
            peer,
            request,
            name,
        });
    }

    pub(super) fn load(&mut self) {
        while self.loading < self.config.loads_max
            && let Some((hash, of_stage)) = self.loads.pop_front()
        {
            self.loading += 1;
            self.loading_for.insert(hash, of_stage);
            self.links.asked(self.now, AgentId::COORDINATOR);
            self.actions.push_back(Action::Load(hash));
        }
    }

    pub(super) fn loaded(
        &mut self,
        hash: ContentHash,
        shipped: bool,
        outcome: Result<u64, InputError>,
    ) {
        self.loading -= 1;
        let from = shipped.then_some(AgentId::COORDINATOR);
        let of_stage = self.loading_for.remove(&hash).unwrap_or_default();
        if let (Some(from), Ok(bytes)) = (from, &outcome) {
            self.links.came(self.now, of_stage, from, *bytes);
        }
        self.links.closed(AgentId::COORDINATOR);
        let name = Name::Input(hash);
        if self.resetting {
            self.actions.push_back(Action::Forget(name));
            return self.rise();
        }
        self.load();
        match outcome {
            Ok(bytes) => {
                self.loaded_bytes += bytes;
                self.arrived(name, bytes, from);
            }
            Err(error) => self.failed(name, &Cause::Input(error)),
        }
    }

    /// It cannot be had: every task that waits for it fails here.
    fn failed(&mut self, name: Name, cause: &Cause) {
        let waiters = self.waiters.remove(&name).unwrap_or_default();
        for task in waiters {
            let Some(this) = self.queue.get(&task).map(|q| q.this) else {
                continue;
            };
            if self.recalled(this) {
                let cause = cause.clone();
                self.tell(FromAgent::Failed { this, cause });
            }
        }
        match self.store.state(&name) {
            State::Coming => self.store.not_coming(name),
            State::Absent | State::Here => {}
        }
        if !self.store.wanted(&name) {
            self.forget(name);
        }
    }

    /// Nobody waits for it any more, perhaps: then it need not come.
    pub(super) fn cancel(&mut self, name: Name) {
        match self.store.state(&name) {
            State::Absent | State::Here => return,
            State::Coming => {}
        }
        if self.store.pins(&name) > 0 {
            return;
        }
        match name {
            Name::Input(hash) => {
                // What the IO threads have begun they finish.
                if let Some(at) = self.loads.iter().position(|(h, _)| *h == hash) {
                    self.loads.remove(at);
                    self.store.not_coming(name);
                }
            }
            Name::Result { .. } | Name::Chunk { .. } => {
                if self.incoming.get(&name).is_some_and(|i| i.gathering) {
                    return;
                }
                self.abandon(name);
                self.store.not_coming(name);
            }
        }
    }

    fn abandon(&mut self, name: Name) {
        let Some(incoming) = self.incoming.remove(&name) else {
            return;
        };
        for request in incoming.requests {
            if let Some((_, peer)) = self.requests.remove(&request) {
                self.links.closed(peer);
            }
        }
        for (piece, _, bytes) in incoming.pieces {
            match piece {
                Piece::Copy(_) => {}
                Piece::Parcel(parcel) => {
                    self.store.release(bytes);
                    self.actions.push_back(Action::Discard(parcel));
                }
            }
        }
    }

    pub(super) fn parcel(
        &mut self,
        request: u64,
        rest: u32,
        parcel: u64,
        bytes: u64,
        what: Parcel,
    ) {
        let known = self.requests.get(&request).copied();
        let Some((name, peer, incoming)) =
            known.and_then(|(name, peer)| Some((name, peer, self.incoming.get_mut(&name)?)))
        else {
            self.actions.push_back(Action::Discard(parcel));
            return;
        };
        let more = match what {
            Parcel::Block | Parcel::Partial(_) => {
                incoming.last = Some(peer);
                self.links.came(self.now, incoming.of_stage, peer, bytes);
                rest > 0 && what != Parcel::Block
            }
            Parcel::Nothing => false,
        };
        if !more {
            self.links.closed(peer);
        }
        match what {
            Parcel::Block => {
                self.requests.remove(&request);
                self.incoming.remove(&name);
                self.actions.push_back(Action::Keep {
                    name,
                    piece: Piece::Parcel(parcel),
                });
                self.arrived(name, bytes, Some(peer));
            }
            Parcel::Partial(set) => {
                incoming.pieces.push((Piece::Parcel(parcel), set, bytes));
                self.store.reserve(bytes);
                self.store.hold();
                if rest == 0 {
                    self.requests.remove(&request);
                    incoming.pending -= 1;
                    self.gather(name);
                }
            }
            Parcel::Nothing => {
                self.actions.push_back(Action::Discard(parcel));
                self.requests.remove(&request);
                match name {
                    // It added to other parts of the sum, not to this one.
                    Name::Chunk { .. } => {
                        incoming.pending -= 1;
                        self.gather(name);
                    }
                    Name::Input(_) | Name::Result { .. } => self.not_from_there(name),
                }
            }
        }
    }

    /// All pieces of a chunk are here: checks that they are the whole sum and each contribution is in it once.
    fn gather(&mut self, name: Name) {
        let Name::Chunk { accumulator, .. } = name else {
            unreachable!("only chunks are gathered")
        };
        let wanted = self.partials.accumulator(accumulator).contributions;
        let incoming = self.incoming.get_mut(&name).expect("on its way");
        if incoming.pending > 0 {
            return;
        }
        let mut all = Contributions::default();
        let disjoint = incoming
            .pieces
            .iter()
            .all(|(_, set, _)| all.join(set).is_ok());
        if !disjoint || !all.covers(wanted) {
            // Partial sums of different moments, around a loss. Whoever waits is given back and told better holders.
            self.misfits.push(name);
            self.dirty = true;
            return;
        }
        if let [(piece, _, bytes)] = incoming.pieces[..] {
            let from = incoming.last;
            self.incoming.remove(&name);
            self.actions.push_back(Action::Keep { name, piece });
            self.store.release(bytes);
            // A view of a copy weighs nothing more.
            self.arrived(name, bytes, from);
            return;
        }
        incoming.gathering = true;
        self.gathering += 1;
        let pieces = incoming.pieces.iter().map(|(piece, _, _)| *piece).collect();
        self.actions.push_back(Action::Gather { name, pieces });
    }

    pub(super) fn return_misfits(&mut self) {
        let names = std::mem::take(&mut self.misfits);
        let waiters = names
            .iter()
            .flat_map(|n| self.waiters.get(n).into_iter().flatten());
        let tries: Vec<Try> = waiters
            .filter_map(|t| self.queue.get(t).map(|q| q.this))
            .collect();
        let back: Vec<Try> = tries.into_iter().filter(|t| self.recalled(*t)).collect();
        if !back.is_empty() {
            self.tell(FromAgent::Returned(back));
        }
    }

    pub(super) fn gathered(&mut self, name: Name, outcome: Result<(), WorkError>) {
        self.gathering -= 1;
        if self.resetting {
            self.actions.push_back(Action::Forget(name));
            return self.rise();
        }
        let Some(incoming) = self.incoming.remove(&name) else {
            // Dropped meanwhile.
            if self.store.state(&name) != State::Here {
                self.actions.push_back(Action::Forget(name));
            }
            return;
        };
        for (_, _, bytes) in &incoming.pieces {
            self.store.release(*bytes);
        }
        match outcome {
            Ok(()) => {
                let bytes = self.chunk_bytes(name);
                self.arrived(name, bytes, incoming.last);
                if self.store.unneeded(&name) {
                    self.forget(name);
                }
            }
            Err(error) => self.failed(name, &Cause::Work(error)),
        }
    }

    fn chunk_bytes(&self, name: Name) -> u64 {
        match name {
            Name::Chunk {
                accumulator,
                part,
                chunk,
            } => {
                8 * u64::from(
                    self.partials.accumulator(accumulator).parts[part as usize][chunk as usize],
                )
            }
            Name::Input(_) | Name::Result { .. } => unreachable!("not a chunk"),
        }
    }

    pub(super) fn forget_fetched(&mut self, origin: Origin) {
        for name in self.fetched.remove(&origin).unwrap_or_default() {
            // Tasks that are here all the same are asked back, or done for nothing.
            if !self.store.release_block(name) && self.store.wanted(&name) {
                continue;
            }
            self.abandon(name);
            self.actions.push_back(Action::Forget(name));
        }
    }

    pub(super) fn asked(&mut self, peer: AgentId, request: u64, name: Name) {
        let mut answers = Vec::new();
        match name {
            Name::Input(_) => {}
            Name::Result { task, range } => {
                let whole = Name::result(task);
                if self.store.owns(&whole) {
                    answers.push(Answer::Block(Source { name: whole, range }));
                }
            }
            Name::Chunk {
                accumulator, part, ..
            } => {
                for (copy, set) in self.partials.seal(accumulator, part).unwrap_or_default() {
                    answers.push(Answer::Partial { name, copy, set });
                }
            }
        }
        if answers.is_empty() {
            answers.push(Answer::Nothing);
        }
        let count = answers.len() as u32;
        for (index, what) in answers.into_iter().enumerate() {
            self.actions.push_back(Action::Answer {
                peer,
                request,
                rest: count - 1 - index as u32,
                what,
            });
        }
    }
}
