//! The bytes behind the names, and the arithmetic. The agent decides; the hands do.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rustc_hash::FxHashMap;
use shared::farm::{
    bytes::{Bytes, BytesMut},
    graph::Accumulator,
    ids::AccumulatorId,
    message::{Name, Try},
    work::{Work, WorkError},
};
use shared::reserve;

use crate::agent::{Job, Piece, Source, Target};

type CopyKey = (AccumulatorId, u16, u16);

enum Sum {
    Open(BytesMut),
    Sealed(Bytes),
}

/// Everything that an agent has in memory.
#[derive(Default)]
pub struct Hands {
    accumulators: Vec<Accumulator>,
    blocks: FxHashMap<Name, Bytes>,
    sums: FxHashMap<CopyKey, Sum>,
    parcels: FxHashMap<u64, Bytes>,
    next_parcel: u64,
}

/// A job with its bytes, to be run anywhere.
pub struct Loaded<W> {
    this: Try,
    work: W,
    inputs: Vec<Bytes>,
    target: LoadedTarget,
}

enum LoadedTarget {
    Block,
    Fold(Vec<Part>),
}

struct Part {
    key: CopyKey,
    /// Bytes of a copy whose memory does not exist yet.
    bytes: usize,
    memory: Option<BytesMut>,
    /// It had memory before: there may be contributions in it.
    open: bool,
}

/// What a job has yielded.
pub struct Yielded {
    pub this: Try,
    outcome: Output,
}

enum Output {
    Block(Result<Bytes, WorkError>),
    /// A fold that fails adds nothing: what was in the parts before is still good.
    Fold(Vec<Part>, Result<(), WorkError>),
}

impl<W: Work> Loaded<W> {
    /// Runs the task; a panic in it is an error of it.
    pub fn run(self) -> Yielded {
        let Self {
            this,
            work,
            inputs,
            target,
        } = self;
        let outcome = match target {
            LoadedTarget::Block => Output::Block(caught(|| work.block(&inputs))),
            LoadedTarget::Fold(mut parts) => {
                let folded = fold(&work, &inputs, &mut parts);
                Output::Fold(parts, folded)
            }
        };
        Yielded { this, outcome }
    }
}

fn fold<W: Work>(work: &W, inputs: &[Bytes], parts: &mut [Part]) -> Result<(), WorkError> {
    for part in parts.iter_mut() {
        if part.memory.is_none() {
            part.memory = Some(BytesMut::zeroed(part.bytes)?);
        }
    }
    let mut slices: Vec<&mut [i64]> = parts
        .iter_mut()
        .map(|p| p.memory.as_mut().expect("made above").numbers_mut::<i64>())
        .collect();
    caught(|| work.fold(inputs, &mut slices))
}

/// What folds asks for its memory before it adds anything: if it was refused, the sum is as it was.
fn caught<T>(run: impl FnOnce() -> Result<T, WorkError>) -> Result<T, WorkError> {
    // Before, not after: a fold that has added cannot be taken back.
    if let Some(bytes) = reserve::spent() {
        return Err(WorkError::OutOfMemory { bytes });
    }
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        // Of a kernel that got no memory.
        if let Some(error) = panic.downcast_ref::<WorkError>() {
            return Err(error.clone());
        }
        let text = panic
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "with something that is no text".to_owned());
        Err(
            refused_bytes(&text).map_or(WorkError::Panic(text), |bytes| WorkError::OutOfMemory {
                bytes,
            }),
        )
    })
}

/// Bytes that the dense algebra's library was refused, if that is what it has panicked about: it has no other way to say so.
fn refused_bytes(text: &str) -> Option<u64> {
    let (_, layout) = text.split_once("AllocError { layout: Layout { size: ")?;
    let (size, _) = layout.split_once(',')?;
    size.parse().ok()
}

/// Adds partial sums.
pub fn add(pieces: &[Bytes]) -> Result<Bytes, WorkError> {
    let Some((first, pieces)) = pieces.split_first() else {
        return Bytes::copy_from(&[]);
    };
    let mut sum = BytesMut::unwritten(first.len())?;
    sum.as_bytes_mut().copy_from_slice(first.as_slice());
    let total = sum.numbers_mut::<i64>();
    for piece in pieces {
        let numbers = piece.numbers::<i64>()?;
        if numbers.len() != total.len() {
            return Err(WorkError::BadInput(format!(
                "partial sums of {} and {} numbers",
                total.len(),
                numbers.len()
            )));
        }
        for (a, b) in total.iter_mut().zip(numbers) {
            *a = a.wrapping_add(*b);
        }
    }
    Ok(sum.freeze())
}

impl Hands {
    pub fn begin(&mut self, accumulators: Vec<Accumulator>) {
        self.accumulators = accumulators;
    }

    /// There are more, behind those that are known.
    pub fn grow(&mut self, accumulators: Vec<Accumulator>) {
        self.accumulators.extend(accumulators);
    }

    pub fn put(&mut self, name: Name, bytes: Bytes) {
        self.blocks.insert(name, bytes);
    }

    pub fn forget(&mut self, name: &Name) {
        self.blocks.remove(name);
    }

    pub fn forget_sum(&mut self, id: AccumulatorId) {
        self.sums.retain(|key, _| key.0 != id);
    }

    /// Takes in what a peer has sent; its number.
    pub fn parcel(&mut self, bytes: Bytes) -> u64 {
        let number = self.next_parcel;
        self.next_parcel += 1;
        self.parcels.insert(number, bytes);
        number
    }

    pub fn discard(&mut self, parcel: u64) {
        self.parcels.remove(&parcel);
    }

    /// Panics when the agent names what is not here: a bug of the agent.
    pub fn block(&self, source: &Source) -> Bytes {
        let bytes = self
            .blocks
            .get(&source.name)
            .unwrap_or_else(|| panic!("{:?} is not here", source.name));
        match source.range {
            None => bytes.clone(),
            Some((start, end)) => bytes.slice(start as usize..end as usize),
        }
    }

    /// Whether there can be such a thing in this plan at all. Names come from other machines.
    pub fn can_be(&self, name: &Name) -> bool {
        match *name {
            Name::Input(_) | Name::Result { range: None, .. } => true,
            Name::Result {
                range: Some((start, end)),
                ..
            } => start <= end,
            Name::Chunk {
                accumulator,
                part,
                chunk,
            } => self
                .accumulators
                .get(accumulator.0 as usize)
                .and_then(|a| a.parts.get(part as usize))
                .is_some_and(|chunks| (chunk as usize) < chunks.len()),
        }
    }

    /// Whether the block is here, and its range within it.
    pub fn reaches(&self, source: &Source) -> bool {
        self.blocks.get(&source.name).is_some_and(|bytes| {
            source
                .range
                .is_none_or(|(start, end)| start <= end && end <= bytes.len() as u64)
        })
    }

    /// A chunk of one copy. From now on the copy is read only.
    pub fn chunk(&mut self, name: &Name, copy: u16) -> Bytes {
        let Name::Chunk {
            accumulator,
            part,
            chunk,
        } = *name
        else {
            panic!("{name:?} is no chunk")
        };
        let key = (accumulator, part, copy);
        let sealed = match self.sums.remove(&key) {
            Some(Sum::Open(memory)) => memory.freeze(),
            Some(Sum::Sealed(bytes)) => bytes,
            None => panic!("copy {copy} of {name:?} is not here"),
        };
        let range = self.accumulators[accumulator.0 as usize].chunk_range(part, chunk);
        let bytes = sealed.slice(8 * range.start..8 * range.end);
        self.sums.insert(key, Sum::Sealed(sealed));
        bytes
    }

    pub fn piece(&mut self, name: &Name, piece: Piece) -> Bytes {
        match piece {
            Piece::Copy(copy) => self.chunk(name, copy),
            Piece::Parcel(parcel) => self.parcels.remove(&parcel).expect("a parcel that is here"),
        }
    }

    /// Gives a job its bytes.
    pub fn load<W>(&mut self, job: Job<W>) -> Loaded<W> {
        let inputs = job.inputs.iter().map(|s| self.block(s)).collect();
        let target = match job.target {
            Target::Block => LoadedTarget::Block,
            Target::Fold {
                accumulator,
                first,
                copies,
            } => LoadedTarget::Fold(
                (first..)
                    .zip(copies)
                    .map(|(part, (copy, open))| {
                        let key = (accumulator, part, copy);
                        let shape = &self.accumulators[accumulator.0 as usize];
                        Part {
                            key,
                            open,
                            bytes: 8 * shape.part_len(part),
                            memory: open.then(|| match self.sums.remove(&key) {
                                Some(Sum::Open(memory)) => memory,
                                Some(Sum::Sealed(_)) | None => {
                                    panic!("copy {copy} of part {part} is not free")
                                }
                            }),
                        }
                    })
                    .collect(),
            ),
        };
        Loaded {
            this: job.this,
            work: job.work,
            inputs,
            target,
        }
    }

    /// Takes in what a job has yielded; the length of the block.
    pub fn take(&mut self, yielded: Yielded) -> Result<u64, WorkError> {
        match yielded.outcome {
            Output::Block(Ok(bytes)) => {
                let length = bytes.len() as u64;
                self.put(Name::result(yielded.this.task), bytes);
                Ok(length)
            }
            Output::Block(Err(why)) => Err(why),
            Output::Fold(parts, folded) => {
                for part in parts {
                    match part.memory {
                        Some(memory) if part.open || folded.is_ok() => {
                            self.sums.insert(part.key, Sum::Open(memory));
                        }
                        Some(_) | None => {}
                    }
                }
                folded.map(|()| 0)
            }
        }
    }

    /// Forgets everything but input blocks.
    pub fn forget_all(&mut self) {
        self.blocks.retain(|name, _| match name {
            Name::Input(_) => true,
            Name::Result { .. } | Name::Chunk { .. } => false,
        });
        self.sums.clear();
        self.parcels.clear();
    }

    /// What is left in memory, for tests: blocks, copies, parcels.
    pub fn leftovers(&self) -> (usize, usize, usize) {
        (self.blocks.len(), self.sums.len(), self.parcels.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_refused_to_the_library_is_no_bug() {
        // As `faer` asks for it, and as it gives up.
        let refused = caught(|| {
            faer::Mat::<f64>::zeros(1 << 40, 1 << 10);
            Ok(())
        });
        let bytes = 8 << 50;
        let known = matches!(refused, Err(WorkError::OutOfMemory { bytes: b }) if b >= bytes);
        assert!(known, "{refused:?}");
        let other: Result<(), _> = caught(|| panic!("of something else"));
        assert!(matches!(other, Err(WorkError::Panic(_))), "{other:?}");
    }
}
