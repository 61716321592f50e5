use std::{collections::HashSet, io::Read};

use super::*;

fn csv(
    shape: Shape,
    seed: u64,
    threads: usize,
    order: Order,
    packing: Packing,
) -> (Vec<u8>, Statistics) {
    let model = Model::new(shape, seed);
    let mut bytes = Vec::new();
    let stop = AtomicBool::new(false);
    let tally = write(&model, threads, order, packing, &stop, |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    })
    .unwrap();
    (bytes, Statistics::new(&model, &tally))
}

fn by_row(shape: Shape, threads: usize) -> Vec<u8> {
    csv(shape, 1, threads, Order::ByRow, Packing::Plain).0
}

/// User, film, half stars, of every line.
fn lines(csv: &[u8]) -> Vec<(u32, u32, u32)> {
    let text = std::str::from_utf8(csv).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("userId,movieId,rating,timestamp"));
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let time: u32 = fields[3].parse().unwrap();
            assert!((789_652_009..1_580_000_000).contains(&time));
            let stars: f64 = fields[2].parse().unwrap();
            (
                fields[0].parse().unwrap(),
                fields[1].parse().unwrap(),
                (2.0 * stars) as u32,
            )
        })
        .collect()
}

#[test]
fn pairs_are_distinct_and_as_many_as_asked_for() {
    for shape in [
        Shape::small(),
        Shape::custom(300, 5000, 20_000).unwrap(),
        Shape::custom(40, 30, 1200).unwrap(),
        Shape::custom(40, 30, 40).unwrap(),
        Shape::custom(3, 100, 100).unwrap(),
        Shape::custom(1, 1, 1).unwrap(),
    ] {
        let lines = lines(&by_row(shape.clone(), 2));
        assert_eq!(lines.len() as u64, shape.entries);
        let pairs: HashSet<_> = lines.iter().map(|&(user, film, _)| (user, film)).collect();
        assert_eq!(pairs.len(), lines.len(), "{shape:?}");
        let users: HashSet<_> = lines.iter().map(|line| line.0).collect();
        assert_eq!(users, (1..=shape.rows).collect());
        let films: HashSet<_> = lines.iter().map(|line| line.1).collect();
        assert_eq!(
            films.len(),
            shape.columns as usize,
            "every column has an entry"
        );
        assert!(
            films
                .iter()
                .all(|&film| film >= 1 && film <= 4 * shape.columns)
        );
        assert!(lines.iter().all(|line| (1..=10).contains(&line.2)));
    }
}

#[test]
fn threads_do_not_change_a_byte() {
    let one = by_row(Shape::small(), 1);
    assert!(one == by_row(Shape::small(), 2));
    assert!(one == by_row(Shape::small(), 5));
}

#[test]
fn bytes_are_the_same_on_every_machine() {
    let csv = by_row(Shape::custom(500, 3000, 40_000).unwrap(), 2);
    assert_eq!(&blake3::hash(&csv).to_hex()[..16], "70cc3a18717f20b1");
}

#[test]
fn shuffling_keeps_the_lines_and_leaves_no_order() {
    let shape = || Shape::custom(2000, 3000, 300_000).unwrap();
    let sorted = by_row(shape(), 2);
    let (shuffled, _) = csv(shape(), 1, 2, Order::Shuffled, Packing::Plain);
    assert!(shuffled == csv(shape(), 1, 1, Order::Shuffled, Packing::Plain).0);
    let sorted = lines(&sorted);
    let mut shuffled = lines(&shuffled);
    let rising = shuffled
        .windows(2)
        .filter(|two| two[0].0 < two[1].0)
        .count();
    assert!((140_000..160_000).contains(&rising), "{rising}");
    shuffled.sort_unstable();
    assert!(sorted == shuffled);
}

#[test]
fn packed_text_unpacks_to_the_same() {
    let plain = by_row(Shape::small(), 1);
    let (gzip, _) = csv(Shape::small(), 1, 2, Order::ByRow, Packing::Gzip);
    let mut unpacked = Vec::new();
    flate2::read::MultiGzDecoder::new(&gzip[..])
        .read_to_end(&mut unpacked)
        .unwrap();
    assert!(unpacked == plain);
    let (zstd, _) = csv(Shape::small(), 1, 2, Order::ByRow, Packing::Zstd);
    assert!(zstd::decode_all(&zstd[..]).unwrap() == plain);
}

/// A twentieth of ml25m's users: what hangs on the columns holds already.
#[test]
fn entries_spread_as_ml25ms_do() {
    let shape = Shape {
        rows: 8_127,
        entries: 1_250_000,
        ..Shape::ml25m()
    };
    let (_, statistics) = csv(shape, 1, 2, Order::ByRow, Packing::Plain);
    assert!((0.55..=0.63).contains(&statistics.top_1000), "{statistics}");
    assert!(
        (0.84..=0.90).contains(&statistics.top_tenth),
        "{statistics}"
    );
    assert!(
        statistics.row[0] == 20 && statistics.row[1] < 90,
        "{statistics}"
    );
    assert!((3.4..=3.6).contains(&statistics.mean), "{statistics}");
    assert!(
        statistics.histogram.iter().all(|&share| share > 0.01),
        "{statistics}"
    );
}

fn args(directory: &Path, name: &str) -> SynthArgs {
    SynthArgs {
        like: Like::Custom,
        rows: Some(50),
        columns: Some(70),
        entries: Some(900),
        seed: 3,
        output: directory.join(name),
        shuffle: false,
        stats: false,
        threads: Some(2),
    }
}

#[test]
fn a_file_appears_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let stopped = run(&args(directory.path(), "a.csv"), &AtomicBool::new(true));
    assert_eq!(stopped, Err(Failure::interrupted()));
    assert!(names().is_empty());
    run(&args(directory.path(), "a.csv"), &AtomicBool::new(false)).unwrap();
    run(&args(directory.path(), "a.csv.gz"), &AtomicBool::new(false)).unwrap();
    assert_eq!(names(), ["a.csv", "a.csv.gz"]);
    let text = std::fs::read(directory.path().join("a.csv")).unwrap();
    assert_eq!(lines(&text).len(), 900);

    let nowhere = run(
        &args(directory.path(), "missing/a.csv"),
        &AtomicBool::new(false),
    )
    .unwrap_err();
    assert_eq!(nowhere.code, crate::failure::ExitCode::Resources);
}

#[test]
fn wrong_shapes_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let mut args = args(directory.path(), "a.csv");
    args.entries = Some(69);
    let told = run(&args, &AtomicBool::new(false)).unwrap_err();
    assert_eq!(
        told.help.as_deref(),
        Some("give --entries between 70 and 3500")
    );
    args.like = Like::Small;
    let told = run(&args, &AtomicBool::new(false)).unwrap_err();
    assert_eq!(told.code, crate::failure::ExitCode::Job);
}
