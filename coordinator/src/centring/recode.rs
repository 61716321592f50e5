//! Blocks of the centred matrix from those of the matrix itself.

use shared::{
    farm::work::WorkError,
    matrix::{encode::encode, facts::BlockFacts},
};

use super::{
    Bench, Step,
    gather::{Model, Parts, Walk, load, rows},
};
use crate::{engine::EngineError, failure::Failure, farm::InputError, ingest::parallel};

/// Makes all of them, each on one thread.
pub fn blocks(
    walk: &mut Walk<'_>,
    model: &Model,
    parts: &Parts,
) -> Result<Vec<BlockFacts>, EngineError> {
    let columns = walk.facts.columns;
    let blocks = &walk.facts.blocks;
    let bench = walk.bench;
    let done = std::sync::atomic::AtomicUsize::new(0);
    let made = parallel::each(
        vec![(); bench.threads.clamp(1, blocks.len().max(1))],
        blocks.len(),
        bench.stop,
        &mut || {
            (walk.tick)(
                Step::Writing,
                done.load(std::sync::atomic::Ordering::Relaxed),
            )
        },
        |(), number, signal| {
            signal.check(number)?;
            let made = block(bench, &blocks[number], columns, model, parts);
            done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            match made {
                Err(EngineError::Failed(failure)) => Err(failure),
                Err(EngineError::Block(why)) => Ok(Err(why)),
                Ok(made) => Ok(Ok(made)),
            }
        },
    )?;
    let made: Result<Vec<BlockFacts>, InputError> = made.into_iter().collect();
    made.map_err(EngineError::Block)
}

fn block(
    bench: &Bench<'_>,
    facts: &BlockFacts,
    columns: u64,
    model: &Model,
    parts: &Parts,
) -> Result<BlockFacts, EngineError> {
    let source = load(bench, facts).map_err(EngineError::Block)?;
    let first = facts.first_row as usize;
    let room = facts.nnz as usize + facts.rows as usize * parts.added();
    let mut starts = Vec::with_capacity(facts.rows as usize + 1);
    let (mut columns_of, mut values) = (Vec::with_capacity(room), Vec::with_capacity(room));
    starts.push(0);
    rows(&source, |row, in_columns, in_values| {
        let row = first + row;
        for (&column, &value) in in_columns.iter().zip(in_values) {
            columns_of.push(column);
            values.push(model.value(row, column as usize, value));
        }
        for (e, value) in model.added(parts, row).enumerate() {
            if value != 0.0 {
                columns_of.push((columns + e as u64) as u32);
                values.push(value);
            }
        }
        starts.push(values.len());
    });
    let columns = columns + parts.added() as u64;
    let bytes = encode(
        &parts.encoding,
        facts.first_row,
        columns,
        &starts,
        &columns_of,
        &values,
    )
    .map_err(|why| match why {
        WorkError::OutOfMemory { .. } => Failure::resources(format!("making a block: {why}")),
        why => Failure::bug(format!("making a block: {why}")),
    })?;
    let length = bytes.len() as u64;
    Ok(BlockFacts {
        hash: (bench.keep)(bytes)?,
        nnz: values.len() as u64,
        bytes: length,
        ..facts.clone()
    })
}
