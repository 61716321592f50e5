//! The centred matrix: found in the cache, or made from the input's blocks.

use std::{sync::atomic::AtomicBool, time::Instant};

use shared::farm::{bytes::Bytes, ids::ContentHash};

use super::{Reading, inputs::FromCache};
use crate::{
    cache,
    centring::{self, Bench, Step},
    engine::EngineError,
    failure::Failure,
    ingest::{Ingested, Uncentred},
    job::resolved::{FactorSpec, Job},
    library,
    report::progress::{Event, Observer, Stage, Unit},
};

/// Memory of a thread that makes blocks: one block and the other, and what stands between them.
const MAKING: u64 = 128 << 20;
/// Grows when the blocks made of equal ones change.
const VERSION: u32 = 1;

/// Facts and blocks of the matrix that is to be factored. Without centring and scaling they are the input's own.
pub fn centred(
    job: &Job,
    mut ingested: Ingested,
    reading: &Reading<'_>,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Ingested, EngineError> {
    if !centring::is_wanted(&job.factor) {
        return Ok(ingested);
    }
    library::check(&ingested.facts, &job.factor)?;
    let started = Instant::now();
    let key = key(&ingested, &job.factor);
    let found = if reading.fresh {
        None
    } else {
        reading.cache.find_centred(&key)?
    };
    let title = |title: &str| Stage {
        title: title.to_owned(),
        unit: Unit::Tasks,
        total: None,
        pass: None,
    };
    let (centred, inputs) = match found {
        Some(found) => {
            observer.observe(Event::Stage(title("the centred matrix is in the cache")));
            found
        }
        None => {
            let staging = reading.cache.stage()?;
            let keep = |bytes: Bytes| {
                let hash = ContentHash::of(bytes.as_slice());
                let path = staging.block_path(&hash);
                std::fs::write(&path, bytes.as_slice()).map_err(|why| {
                    Failure::resources(format!("could not write {}: {why}", path.display())).help(
                        "free some space, or name a directory on a larger disk as `resources.cache`",
                    )
                })?;
                Ok(hash)
            };
            let bench = Bench {
                source: &FromCache(ingested.inputs.clone()),
                keep: &keep,
                threads: job
                    .resources
                    .cores
                    .min((job.resources.memory / MAKING) as usize)
                    .max(1),
                stop,
            };
            let blocks = ingested.facts.blocks.len() as u64;
            let mut at = None;
            let mut tick = |step: Step, done: usize| {
                if at != Some(step) {
                    at = Some(step);
                    let words = match step {
                        Step::Means => "centring: means",
                        Step::Writing => "centring: writing blocks",
                    };
                    observer.observe(Event::Stage(Stage {
                        total: Some(blocks),
                        ..title(words)
                    }));
                }
                observer.observe(Event::Done(done as u64));
            };
            let centred = centring::centred(
                &ingested.facts,
                ingested.transposed,
                &job.factor,
                &bench,
                &mut tick,
            )?;
            let source = ingested.source().clone();
            let kept = cache::derived(source, &centred, ingested.transposed, ingested.lines);
            let inputs = reading.cache.commit_centred(&staging, &key, kept)?;
            drop(staging);
            reading.cache.bound()?;
            (centred, inputs)
        }
    };
    ingested.centred = Some(Box::new(Uncentred {
        facts: std::mem::replace(&mut ingested.facts, centred.facts),
        inputs: std::mem::replace(&mut ingested.inputs, inputs),
        centring: centred.centring,
    }));
    ingested.seconds += started.elapsed().as_secs_f64();
    Ok(ingested)
}

/// By content: equal matrices share it, wherever they come from.
fn key(ingested: &Ingested, factor: &FactorSpec) -> String {
    let mut hasher = blake3::Hasher::new();
    for block in &ingested.facts.blocks {
        hasher.update(&block.hash.0);
    }
    let words = format!(
        "{VERSION} {:?} {:?} {} {}",
        factor.center, factor.scale, ingested.transposed, ingested.facts.rows
    );
    hasher.update(words.as_bytes());
    hasher.finalize().to_hex()[..32].to_owned()
}
