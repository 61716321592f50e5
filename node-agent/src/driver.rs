//! Runs an agent in this process: its mailbox, its threads, its links.

use std::{
    iter,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use shared::farm::{
    bytes::Bytes,
    contributions::Contributions,
    frame::{Bulk, BulkKind, Frame, FrameError, decode_control, plan_tag},
    ids::{AgentId, ContentHash},
    link::Outbox,
    message::{Fetch, FromAgent, Name, Peer, ToAgent},
    moment::Moment,
    work::Work,
};

use crate::{
    agent::{Action, Agent, AgentConfig, Answer, Event, Parcel, Ran},
    executor::{Executor, Report, Threads},
    hands::Hands,
    inputs::Inputs,
};

/// What arrives in an agent's mailbox.
pub enum Letter {
    Coordinator(Frame),
    /// A question or an answer of somebody who is not the coordinator in person; or an answer from its spool.
    Peer(AgentId, Frame),
    /// That agent cannot be reached, or no longer.
    PeerGone(AgentId),
    /// The coordinator cannot be reached any more.
    CoordinatorGone,
    Report(Report),
}

/// Where an agent's words go.
pub trait Links: Send {
    /// The coordinator calls this agent by that number from now on.
    fn begin(&mut self, me: AgentId);
    fn coordinator(&self) -> &Outbox;
    /// The way to ask another agent for something; to be found in `Peers` messages. Questions to the coordinator go to its
    /// own outbox.
    fn ask(&mut self, whom: AgentId) -> Option<Outbox>;
    /// The way to answer somebody who has asked.
    fn answer(&mut self, whom: AgentId) -> Option<Outbox>;
    /// Those agents are there, too.
    fn meet(&mut self, peers: &[Peer]);
    /// That agent breaks the protocol: have nothing more to do with it.
    fn shun(&mut self, whom: AgentId);
}

/// Letters handled before actions are taken: enough to make messages of several tasks, few enough to stay prompt.
const LETTERS_MAX: usize = 256;

/// Why an agent stopped before its job ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("could not start a thread: {0}")]
    Threads(#[from] std::io::Error),
    #[error("a frame {0}")]
    Frame(#[from] FrameError),
}

/// An agent with its threads and links, for whoever reads its mailbox: letters are to be put to [`read`](Driver::read), then
/// [`act`](Driver::act) is to be called, and again no later than [`due`](Driver::due) says.
pub struct Driver<W: Work, L: Links> {
    agent: Agent<W>,
    hands: Hands,
    executor: Executor<W>,
    links: L,
    inputs: Arc<dyn Inputs>,
    plan: ContentHash,
    start: Instant,
    /// The coordinator is gone.
    abandoned: bool,
}

/// Runs an agent until its job ends or its coordinator is gone.
pub fn run_agent<W: Work>(
    config: AgentConfig,
    io: usize,
    inputs: &Arc<dyn Inputs>,
    (mailbox, letters): (Sender<Letter>, Receiver<Letter>),
    links: impl Links,
) -> Result<(), AgentError> {
    // What a node waits for comes by the network, and other programs may want the core.
    let threads = Threads {
        io,
        awake: Duration::ZERO,
    };
    let mut driver =
        Driver::<W, _>::start(config, threads, inputs, &mailbox, Letter::Report, links)?;
    // From now on only links and threads keep the mailbox open.
    drop(mailbox);
    while driver.act() {
        let first = match driver.due() {
            None => letters.recv().ok(),
            Some(wait) => match letters.recv_timeout(wait) {
                Ok(letter) => Some(letter),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => None,
            },
        };
        let Some(first) = first else {
            break;
        };
        let more = letters.try_iter().take(LETTERS_MAX);
        for letter in iter::once(first).chain(more) {
            driver.read(letter)?;
        }
    }
    Ok(())
}

impl<W: Work, L: Links> Driver<W, L> {
    /// Starts the threads; what they report goes into the mailbox.
    pub fn start<M: Send + 'static>(
        config: AgentConfig,
        threads: Threads,
        inputs: &Arc<dyn Inputs>,
        mailbox: &Sender<M>,
        wrap: impl Fn(Report) -> M + Clone + Send + 'static,
        links: L,
    ) -> Result<Self, AgentError> {
        let executor = Executor::start(config.cores, threads, inputs, mailbox, wrap)?;
        Ok(Self {
            agent: Agent::<W>::new(config),
            hands: Hands::default(),
            executor,
            links,
            inputs: Arc::clone(inputs),
            plan: ContentHash([0; 32]),
            start: Instant::now(),
            abandoned: false,
        })
    }

    /// Does what there is to do; false when the job has ended or the coordinator is gone.
    pub fn act(&mut self) -> bool {
        if self.due().is_some_and(|wait| wait.is_zero()) {
            self.handle(Event::Tick);
        }
        while let Some(action) = self.agent.poll_action() {
            if !self.take(action) {
                return false;
            }
        }
        !self.abandoned
    }

    /// Whether a core has nothing to do.
    pub fn is_idle(&self) -> bool {
        self.agent.is_idle()
    }

    /// When something is to be done though no letter comes.
    pub fn due(&self) -> Option<Duration> {
        let deadline = self.agent.poll_deadline()?;
        Some(Duration::from_micros(deadline.since(self.now())))
    }

    fn now(&self) -> Moment {
        Moment(self.start.elapsed().as_micros() as u64)
    }

    fn handle(&mut self, event: Event<W>) {
        let now = self.now();
        self.agent.handle(now, event);
    }

    /// Handles a letter. Nonsense from the coordinator ends the job, nonsense from a peer ends that link.
    pub fn read(&mut self, letter: Letter) -> Result<(), AgentError> {
        let peer = match &letter {
            Letter::Peer(peer, _) => Some(*peer),
            Letter::Coordinator(_)
            | Letter::PeerGone(_)
            | Letter::CoordinatorGone
            | Letter::Report(_) => None,
        };
        match (self.understand(letter), peer) {
            (Ok(Some(event)), _) => self.handle(event),
            (Ok(None), _) => {}
            (Err(why), Some(peer)) => {
                tracing::warn!("nonsense from agent {}: a frame {why}", peer.0);
                self.links.shun(peer);
                self.handle(Event::PeerGone(peer));
            }
            (Err(why), None) => return Err(why.into()),
        }
        Ok(())
    }

    fn understand(&mut self, letter: Letter) -> Result<Option<Event<W>>, FrameError> {
        let event = match letter {
            Letter::Coordinator(Frame::Control(bytes)) => {
                let message: ToAgent<W> = decode_control(&bytes)?;
                match &message {
                    ToAgent::Begin {
                        you,
                        plan,
                        accumulators,
                        ..
                    } => {
                        self.links.begin(*you);
                        self.plan = *plan;
                        self.hands.begin(accumulators.clone());
                    }
                    ToAgent::Grow { accumulators } => self.hands.grow(accumulators.clone()),
                    ToAgent::Peers(peers) => self.links.meet(peers),
                    ToAgent::Ping
                    | ToAgent::Reset
                    | ToAgent::Refuse { .. }
                    | ToAgent::Assign(_)
                    | ToAgent::Recall(_)
                    | ToAgent::Drop { .. }
                    | ToAgent::Delivered(_)
                    | ToAgent::End => {}
                }
                Event::Coordinator(message)
            }
            Letter::Peer(from, Frame::Control(bytes)) => {
                let Fetch { request, name } = decode_control(&bytes)?;
                if !self.hands.can_be(&name) {
                    return Err(FrameError::Message(format!("there can be no {name:?}")));
                }
                Event::Asked {
                    from,
                    request,
                    name,
                }
            }
            Letter::Coordinator(Frame::Bulk { head, payload })
            | Letter::Peer(_, Frame::Bulk { head, payload }) => {
                let bulk = Bulk::decode(&head, payload)?;
                if bulk.plan != plan_tag(self.plan) {
                    return Ok(None);
                }
                let what = match bulk.kind {
                    BulkKind::Block => Parcel::Block,
                    BulkKind::Partial => Parcel::Partial(bulk.set),
                    BulkKind::Nothing => Parcel::Nothing,
                    BulkKind::Delivery => return Ok(None),
                };
                Event::Arrived {
                    request: bulk.request,
                    rest: bulk.rest,
                    bytes: bulk.payload.len() as u64,
                    parcel: self.hands.parcel(bulk.payload),
                    what,
                }
            }
            Letter::PeerGone(peer) => Event::PeerGone(peer),
            Letter::CoordinatorGone => {
                self.abandoned = true;
                return Ok(None);
            }
            Letter::Report(Report::Ran { worker, yielded }) => Event::Ran {
                worker,
                results: yielded
                    .into_iter()
                    .map(|(yielded, took_us)| Ran {
                        this: yielded.this,
                        took_us,
                        outcome: self.hands.take(yielded),
                    })
                    .collect(),
            },
            Letter::Report(Report::Loaded { hash, outcome }) => Event::Loaded {
                hash,
                shipped: outcome.as_ref().is_ok_and(|(_, shipped)| *shipped),
                outcome: outcome.map(|(bytes, _)| {
                    let length = bytes.len() as u64;
                    self.hands.put(Name::Input(hash), bytes);
                    length
                }),
            },
            Letter::Report(Report::Gathered { name, outcome }) => Event::Gathered {
                name,
                outcome: outcome.map(|bytes| self.hands.put(name, bytes)),
            },
        };
        Ok(Some(event))
    }

    /// Does what the agent says; false when that is to stop.
    fn take(&mut self, action: Action<W>) -> bool {
        match action {
            Action::Tell(message) => return self.links.coordinator().control(&message).is_ok(),
            Action::Ask {
                peer,
                request,
                name,
            } => {
                let fetch = Fetch { request, name };
                let asked = if peer == AgentId::COORDINATOR {
                    let question = FromAgent::Fetch(fetch);
                    self.links.coordinator().control(&question).is_ok()
                } else {
                    self.links
                        .ask(peer)
                        .is_some_and(|p| p.control(&fetch).is_ok())
                };
                if !asked {
                    tracing::debug!(?peer, ?name, "a peer is gone");
                    self.handle(Event::PeerGone(peer));
                }
            }
            Action::Answer {
                peer,
                request,
                rest,
                what,
            } => {
                let answer = bulk_answer(&mut self.hands, self.plan, request, rest, what);
                // A peer that is gone needs no answer.
                if let Some(peer) = self.links.answer(peer) {
                    let _ = peer.bulk(&answer);
                }
            }
            Action::Deliver(task) => {
                let bytes = self.hands.block(&crate::agent::Source {
                    name: Name::result(task),
                    range: None,
                });
                return self
                    .links
                    .coordinator()
                    .bulk(&Bulk::delivery(self.plan, task, bytes))
                    .is_ok();
            }
            Action::Survey(hashes) => {
                let here = (0..)
                    .zip(&hashes)
                    .filter(|(_, hash)| self.inputs.has(hash))
                    .map(|(place, _)| place)
                    .collect();
                self.handle(Event::Surveyed(here));
            }
            Action::Load(hash) => self.executor.load(hash),
            Action::Run { worker, jobs } => {
                let bundle = jobs.into_iter().map(|job| self.hands.load(job)).collect();
                self.executor.run(worker, bundle);
            }
            Action::Gather { name, pieces } => {
                let pieces = pieces
                    .into_iter()
                    .map(|piece| self.hands.piece(&name, piece))
                    .collect();
                self.executor.add(name, pieces);
            }
            Action::Keep { name, piece } => {
                let bytes = self.hands.piece(&name, piece);
                self.hands.put(name, bytes);
            }
            Action::Forget(name) => self.hands.forget(&name),
            Action::ForgetSum(id) => self.hands.forget_sum(id),
            Action::Discard(parcel) => self.hands.discard(parcel),
            Action::ForgetAll => self.hands.forget_all(),
            Action::Overrun {
                task,
                tracked,
                budget,
            } => tracing::warn!(
                task = task.0,
                tracked_bytes = tracked,
                budget_bytes = budget,
                "the memory budget cannot hold what one task needs; going over it"
            ),
            Action::Stop => return false,
        }
        true
    }
}

/// The frame that answers a peer.
pub fn bulk_answer(
    hands: &mut Hands,
    plan: ContentHash,
    request: u64,
    rest: u32,
    what: Answer,
) -> Bulk {
    let nothing = || {
        let payload = Bytes::copy_from(&[]).expect("nothing");
        (BulkKind::Nothing, Contributions::default(), payload)
    };
    let (kind, set, payload) = match what {
        // A range that is not in the block is no reason to fall over.
        Answer::Block(source) if !hands.reaches(&source) => nothing(),
        Answer::Block(source) => (
            BulkKind::Block,
            Contributions::default(),
            hands.block(&source),
        ),
        Answer::Partial { name, copy, set } => (BulkKind::Partial, set, hands.chunk(&name, copy)),
        Answer::Nothing => nothing(),
    };
    Bulk {
        kind,
        request,
        plan: plan_tag(plan),
        rest,
        set,
        payload,
    }
}
