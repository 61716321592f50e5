//! Ingest against a naive reading of the same lines.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use proptest::prelude::*;
use shared::matrix::{block::RowBlock, encode::Encoding};

use super::*;
use crate::failure::ExitCode;
use crate::job::resolved::Field;

struct World {
    dir: tempfile::TempDir,
    cache: Cache,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("cache"), u64::MAX).unwrap();
        Self { dir, cache }
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn options(&self) -> IngestOptions<'_> {
        IngestOptions {
            cache: &self.cache,
            memory: 1 << 30,
            cores: 2,
            fresh: false,
            allow_transpose: false,
        }
    }

    fn ingest(&self, spec: &MatrixSpec) -> Result<Ingested, Failure> {
        self.ingest_with(spec, &self.options())
    }

    fn ingest_with(
        &self,
        spec: &MatrixSpec,
        options: &IngestOptions<'_>,
    ) -> Result<Ingested, Failure> {
        let result = ingest(spec, options, &mut |_| {}, &AtomicBool::new(false));
        let tmp = self.cache.path().join("v1/tmp");
        assert_eq!(fs::read_dir(tmp).unwrap().count(), 0, "rubbish stays");
        result
    }

    fn failure(&self, spec: &MatrixSpec) -> String {
        let failure = self.ingest(spec).expect_err("must fail");
        let place = format!("{}/", self.dir.path().display());
        let help = failure.help.unwrap_or_default();
        format!("{} / {help}", failure.message).replace(&place, "")
    }
}

fn by_number(path: &Path) -> MatrixSpec {
    MatrixSpec {
        path: path.to_owned(),
        rows: Field::Number(1),
        columns: Field::Number(2),
        values: Some(Field::Number(3)),
        duplicates: Duplicates::Error,
    }
}

fn by_name(path: &Path, rows: &str, columns: &str, values: &str) -> MatrixSpec {
    MatrixSpec {
        rows: Field::Name(rows.into()),
        columns: Field::Name(columns.into()),
        values: Some(Field::Name(values.into())),
        ..by_number(path)
    }
}

type Entries = Vec<(String, String, f64)>;

/// Every entry by its labels, in the order of rows and columns.
fn entries(of: &Ingested) -> Entries {
    let mut all = Vec::new();
    let mut first = 0;
    for facts in &of.facts.blocks {
        let block = RowBlock::parse(of.load(&facts.hash).unwrap()).unwrap();
        assert_eq!((block.first_row(), block.nnz()), (first, facts.nnz));
        first += block.rows() as u64;
        for (row, column, value) in block.entries() {
            all.push((
                of.row_labels
                    .text(facts.first_row as usize + row)
                    .into_owned(),
                of.column_labels.text(column).into_owned(),
                value,
            ));
        }
    }
    assert_eq!(first, of.facts.rows);
    assert_eq!(all.len() as u64, of.facts.nnz);
    all
}

/// What the lines mean, read the slow way.
fn oracle(lines: &[(String, String, f64)], duplicates: Duplicates) -> Option<Entries> {
    let key = |labels: Vec<&String>| -> BTreeMap<String, usize> {
        let mut sorted: Vec<String> = labels.into_iter().cloned().collect();
        if sorted
            .iter()
            .all(|l| labels::canonical(l.as_bytes()).is_some())
        {
            sorted.sort_by_key(|l| l.parse::<u64>().unwrap());
        } else {
            sorted.sort();
        }
        sorted.dedup();
        sorted
            .into_iter()
            .enumerate()
            .map(|(i, l)| (l, i))
            .collect()
    };
    let rows = key(lines.iter().map(|l| &l.0).collect());
    let columns = key(lines.iter().map(|l| &l.1).collect());
    let mut cells: BTreeMap<_, Vec<&(String, String, f64)>> = BTreeMap::new();
    for line in lines {
        cells
            .entry((rows[&line.0], columns[&line.1]))
            .or_default()
            .push(line);
    }
    cells
        .into_values()
        .map(|same| {
            let sum: f64 = same.iter().map(|l| l.2).sum();
            let value = match duplicates {
                Duplicates::Error if same.len() > 1 => return None,
                Duplicates::Error | Duplicates::Last => same[same.len() - 1].2,
                Duplicates::Sum if same.len() > 1 => sum,
                Duplicates::Mean if same.len() > 1 => sum / same.len() as f64,
                Duplicates::Sum | Duplicates::Mean => same[0].2,
            };
            Some((same[0].0.clone(), same[0].1.clone(), value + 0.0))
        })
        .collect()
}

fn sorted(mut entries: Entries) -> Entries {
    entries.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    entries
}

fn films() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/films/ratings.csv")
}

#[test]
fn real_ratings_come_in_whole() {
    let world = World::new();
    let spec = by_name(&films(), "userId", "movieId", "rating");
    let of = world.ingest(&spec).unwrap();
    assert_eq!((of.facts.rows, of.facts.columns), (610, 9_724));
    assert_eq!(
        (of.facts.nnz, of.lines, of.reused),
        (100_836, 100_836, false)
    );
    assert_eq!(of.facts.max_abs, 5.0);
    assert!(matches!(&of.facts.encoding, Encoding::Coded(t) if t.len() == 10));
    let lines: Entries = fs::read_to_string(films())
        .unwrap()
        .lines()
        .skip(1)
        .map(|l| {
            let f: Vec<&str> = l.split(',').collect();
            (f[0].to_owned(), f[1].to_owned(), f[2].parse().unwrap())
        })
        .collect();
    assert_eq!(entries(&of), oracle(&lines, Duplicates::Error).unwrap());
    let squares: f64 = lines.iter().map(|l| l.2 * l.2).sum();
    assert_eq!(of.facts.frobenius_squared(), squares);
    assert_eq!(of.column_labels.find(b"193609"), Some(9_723));
    let mut csv = Vec::new();
    of.column_labels.write_csv(&mut csv).unwrap();
    assert!(csv.starts_with(b"index,label\n0,1\n1,2\n"));

    let again = world.ingest(&spec).unwrap();
    assert!(again.reused && again.bytes_read == 0);
    assert_eq!(again.facts, of.facts);
    assert_eq!(again.row_labels, of.row_labels);

    let turned = IngestOptions {
        allow_transpose: true,
        ..world.options()
    };
    let turned = world.ingest_with(&spec, &turned).unwrap();
    assert!(turned.transposed);
    assert_eq!((turned.facts.rows, turned.facts.columns), (9_724, 610));
    let back = entries(&turned)
        .into_iter()
        .map(|(r, c, v)| (c, r, v))
        .collect();
    assert_eq!(sorted(back), sorted(entries(&of)));
}

#[test]
fn every_dialect_and_packing_gives_the_same() {
    let world = World::new();
    let rows = [("7", "30", 4.5), ("7", "5", 1.0), ("12", "30", 2.0)];
    let text = |gap: &str, end: &str| -> String {
        rows.iter()
            .map(|(r, c, v)| format!("{r}{gap}{c}{gap}{v}{gap}99{end}"))
            .collect()
    };
    let expected: Entries = [("7", "5", 1.0), ("7", "30", 4.5), ("12", "30", 2.0)]
        .map(|(r, c, v)| (r.to_owned(), c.to_owned(), v))
        .to_vec();
    let mut files: Vec<PathBuf> = Vec::new();
    for (n, gap) in [",", "\t", "::", ";", "|", " ", "  ", ", "]
        .iter()
        .enumerate()
    {
        files.push(world.file(&format!("{n}.txt"), text(gap, "\n")));
        files.push(world.file(&format!("{n}-crlf.txt"), text(gap, "\r\n") + "\r\n\r\n"));
        files.push(world.file(
            &format!("{n}-bom.txt"),
            format!("\u{feff}{}\n", text(gap, "\n")),
        ));
        files.push(world.file(&format!("{n}-end.txt"), text(gap, "\n").trim_end()));
        files.push(world.file(
            &format!("{n}-header.txt"),
            format!("a{gap}b{gap}c{gap}d\n{}", text(gap, "\n")),
        ));
    }
    files.push(world.file("cr.txt", text(",", "\r")));
    files.push(world.file(
        "quoted.csv",
        "\"7\",\"30\",\"4.5\",\"9,9\"\n7,5,1,\"9\n9\"\n 12 ,30,+2e0,\n",
    ));
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(text(",", "\n").as_bytes()).unwrap();
    files.push(world.file("x.gz", gz.finish().unwrap()));
    files.push(world.file(
        "x.zst",
        zstd::encode_all(text(",", "\n").as_bytes(), 1).unwrap(),
    ));
    for file in files {
        let of = world
            .ingest(&by_number(&file))
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        assert_eq!(entries(&of), expected, "{}", file.display());
        let head = peek(&by_number(&file)).unwrap();
        assert_eq!((head.fields, head.problems), (4, Vec::new()));
    }
}

#[test]
fn without_values_every_line_counts_one() {
    let world = World::new();
    let path = world.file("a.tsv", "user\titem\n1\tx\n2\ty\n1\ty\n");
    let spec = MatrixSpec {
        values: None,
        ..by_number(&path)
    };
    let of = world.ingest(&spec).unwrap();
    assert!(entries(&of).iter().all(|e| e.2 == 1.0));
    assert_eq!(of.facts.nnz, 3);
    assert_eq!(of.column_labels.find(b"y"), Some(1));
}

#[test]
fn errors_name_their_place() {
    let world = World::new();
    let cases: &[(&str, &str)] = &[
        ("", "x.csv is empty"),
        ("\n\n \n", "x.csv holds nothing"),
        ("u,i,r\n", "x.csv holds a header line and no data"),
        (
            "1,2,3\n4,5,x\n",
            "x.csv:2:5: expected a number, found \"x\"",
        ),
        ("1,2,3\n4,5,\n", "x.csv:2:5: the value is empty"),
        (
            "1,2,3\n4,5,NaN\n",
            "x.csv:2:5: expected a finite number, found \"NaN\"",
        ),
        ("1,2,3\n4,5,1e999\n", "x.csv:2:5: expected a finite number"),
        (
            "1,2,3\n\n4,5\n",
            "x.csv:3:1: expected 3 fields apart by comma, found 2",
        ),
        (
            "1,2,3\n4,5,6,7\n",
            "x.csv:2:1: expected 3 fields apart by comma, found 4",
        ),
        ("1,2,3\n ,5,6\n", "x.csv:2:1: the row's label is empty"),
        ("1,2,3\né,,6\n", "x.csv:2:3: the column's label is empty"),
        (
            "1,\"a\nb\",3\n4,\"c\",1\n5,6,\"1,5\"\n",
            "x.csv:4:5: expected a number, found \"1,5\"",
        ),
        (
            "9,8,3\n1,1,1\n9,8,4\n",
            "x.csv:3:1: row \"9\" and column \"8\" have a second value; the first is in line 1",
        ),
        ("12\n13\n", "x.csv:1:1: the first line is one field only"),
        ("1,2,3\n4,\"5,6\n7,8,9\n", "x.csv:2:1: expected 3 fields"),
        ("\u{0},1,2\n", "x.csv is not text"),
    ];
    for (text, wanted) in cases {
        let path = world.file("x.csv", text);
        let told = world.failure(&by_number(&path));
        assert!(
            told.starts_with(wanted),
            "{text:?} gives {told:?}, not {wanted:?}"
        );
    }
    let far = (0..300_000).fold(String::new(), |s, i| {
        s + &format!("{},{},3\n", i / 100, i % 100)
    }) + "1,x y,2\n3,4,five\n";
    let path = world.file("far.csv", far);
    let told = world.failure(&by_number(&path));
    assert!(
        told.starts_with("far.csv:300002:5: expected a number, found \"five\""),
        "{told}"
    );
}

#[test]
fn what_cannot_be_opened_is_told() {
    let world = World::new();
    let told = world.failure(&by_number(&world.dir.path().join("none.csv")));
    assert!(told.starts_with("none.csv does not exist"), "{told}");
    let told = ingest(
        &by_number(world.dir.path()),
        &world.options(),
        &mut |_| {},
        &AtomicBool::new(false),
    )
    .unwrap_err();
    assert_eq!(told.code, ExitCode::Data);
    assert!(told.message.ends_with("is a directory"));
    let path = world.file("h.csv", "userId,movieId,rating\n1,2,3\n");
    let told = world.failure(&by_name(&path, "user_id", "movieId", "rating"));
    assert!(
        told.starts_with("h.csv:1:1: there is no column named \"user_id\" for the rows / did you mean \"userId\"? the columns are \"userId\", \"movieId\", \"rating\""),
        "{told}"
    );
    let file = Path::new("/dev/null/cache");
    assert_eq!(Cache::open(file, 0).unwrap_err().code, ExitCode::Resources);
}

#[test]
fn packed_data_cut_off_are_told() {
    let world = World::new();
    let text: String = (0..200_000)
        .map(|i| format!("{i},{},3\n", i * 7919 % 1000))
        .collect();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(text.as_bytes()).unwrap();
    let gz = gz.finish().unwrap();
    let zst = zstd::encode_all(text.as_bytes(), 1).unwrap();
    for (name, bytes, kind) in [("a.gz", gz, "gzip"), ("a.zst", zst, "zstd")] {
        let path = world.file(name, &bytes[..bytes.len() * 2 / 3]);
        let told = world.failure(&by_number(&path));
        let wanted = format!("{name}: the {kind} data end too early");
        assert!(told.starts_with(&wanted), "{told}");
        let mut bad = bytes.clone();
        let middle = bad.len() / 2;
        for b in &mut bad[middle..middle + 64] {
            *b ^= 0x55;
        }
        let path = world.file(name, bad);
        assert_eq!(
            world.ingest(&by_number(&path)).unwrap_err().code,
            ExitCode::Data
        );
    }
}

#[test]
fn an_interrupted_ingest_leaves_nothing() {
    let world = World::new();
    let failure = ingest(
        &by_number(&films()),
        &world.options(),
        &mut |_| {},
        &AtomicBool::new(true),
    )
    .unwrap_err();
    assert_eq!(failure.code, ExitCode::Interrupted);
    assert_eq!(
        fs::read_dir(world.cache.path().join("v1/tmp"))
            .unwrap()
            .count(),
        0
    );
    assert!(world.cache.list().unwrap().is_empty());
}

#[test]
fn an_ingest_interrupted_midway_leaves_nothing() {
    let world = World::new();
    // Packed tightly, so that reading takes long enough to be told of.
    let line = "1,2,3\n".repeat(1 << 20);
    let path = world.file(
        "long.zst",
        zstd::encode_all(line.repeat(8).as_bytes(), 1).unwrap(),
    );
    let stop = AtomicBool::new(false);
    let failure = ingest(
        &by_number(&path),
        &world.options(),
        &mut |_| stop.store(true, Ordering::Relaxed),
        &stop,
    )
    .unwrap_err();
    // Were it over before the first word of progress, its twins would be told of.
    assert!(matches!(
        failure.code,
        ExitCode::Interrupted | ExitCode::Data
    ));
    let tmp = world.cache.path().join("v1/tmp");
    assert_eq!(fs::read_dir(tmp).unwrap().count(), 0);
    assert!(world.cache.list().unwrap().is_empty());
}

#[test]
fn many_labels_of_any_kind_keep_their_order() {
    let world = World::new();
    let mut lines = Vec::new();
    for i in 0..5_000u64 {
        let row = i * 999_983 % 1_000_003 * 9_000_000_000;
        lines.push((row.to_string(), format!("c{}", i % 97), i as f64 / 4.0));
        lines.push((row.to_string(), format!("00{}", i % 89), -1.5));
    }
    let text: String = lines
        .iter()
        .map(|(r, c, v)| format!("{r},{c},{v}\n"))
        .collect();
    let path = world.file("l.csv", text);
    let of = world.ingest(&by_number(&path)).unwrap();
    assert_eq!(entries(&of), oracle(&lines, Duplicates::Error).unwrap());
    assert_eq!(of.facts.encoding, Encoding::F32);
    let again = world.ingest(&by_number(&path)).unwrap();
    assert!(again.reused);
    assert_eq!(entries(&again), entries(&of));
    assert_eq!(again.row_labels, of.row_labels);
}

/// A matrix of several blocks and buckets, its lines shuffled.
fn wide_matrix(seed: u64) -> Vec<(u64, u64, f64)> {
    let mut lines: Vec<(u64, u64, f64)> = (0..1_400_000u64)
        .map(|i| (i / 20, (i % 20) * 50 + i * seed % 50, (i % 9) as f64 / 2.0))
        .collect();
    let mut state = seed;
    for i in (1..lines.len()).rev() {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(99991);
        lines.swap(i, (state >> 33) as usize % (i + 1));
    }
    lines
}

#[test]
fn threads_memory_and_order_of_lines_change_nothing() {
    let world = World::new();
    let write = |name: &str, lines: &[(u64, u64, f64)], tail: &str| {
        let mut text = String::new();
        for (r, c, v) in lines {
            use std::fmt::Write;
            writeln!(text, "{r},{c},{v}").unwrap();
        }
        world.file(name, text + tail)
    };
    let lines = wide_matrix(3);
    let mut in_order = lines.clone();
    in_order.sort_by_key(|l| (l.0, l.1));
    for tail in ["", "5,999999,0.3\n5,999999,0.4\n5,999999,0.7\n"] {
        let a = write("a.csv", &lines, tail);
        let b = write("b.csv", &in_order, tail);
        let mut first: Option<Ingested> = None;
        for (path, cores, memory) in [(&a, 1, 1 << 30), (&a, 2, 1), (&b, 3, 1 << 26), (&b, 1, 1)] {
            let options = IngestOptions {
                cores,
                memory,
                fresh: true,
                ..world.options()
            };
            let spec = MatrixSpec {
                duplicates: if tail.is_empty() {
                    Duplicates::Error
                } else {
                    Duplicates::Sum
                },
                ..by_number(path)
            };
            let of = world.ingest_with(&spec, &options).unwrap();
            if let Some(first) = &first {
                assert_eq!(of.facts, first.facts);
                assert_eq!(of.row_labels, first.row_labels);
            } else {
                assert!(of.facts.blocks.len() > 2);
                first = Some(of);
            }
        }
        // The same from the other side.
        let turned: Vec<_> = lines.iter().map(|&(r, c, v)| (c, r, v)).collect();
        let tail: String = tail
            .lines()
            .map(|l| {
                let f: Vec<&str> = l.split(',').collect();
                format!("{},{},{}\n", f[1], f[0], f[2])
            })
            .collect();
        let t = write("t.csv", &turned, &tail);
        let options = IngestOptions {
            allow_transpose: true,
            ..world.options()
        };
        let spec = MatrixSpec {
            duplicates: Duplicates::Sum,
            ..by_number(&t)
        };
        let of = world.ingest_with(&spec, &options).unwrap();
        assert!(of.transposed);
        assert_eq!(of.facts, first.unwrap().facts);
    }
}

fn label() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (0u64..30).prop_map(|n| n.to_string()),
        1 => (0u64..3).prop_map(|n| (n * 98_765_432_109).to_string()),
    ]
}

fn odd_label() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => label(),
        1 => "[a-c]{1,2}",
        1 => Just("007".to_owned()),
        1 => Just("1234567890123456789012".to_owned()),
        1 => Just("-3".to_owned()),
        1 => Just("ü".to_owned()),
    ]
}

fn any_value() -> impl Strategy<Value = (String, f64)> {
    prop_oneof![
        6 => (0u32..10).prop_map(|n| { let v = f64::from(n) / 2.0; (format!("{v:.1}"), v) }),
        2 => any::<i16>().prop_map(|n| (n.to_string(), f64::from(n))),
        1 => any::<f64>().prop_filter("finite", |v| v.is_finite()).prop_map(|v| (format!("{v}"), v)),
        1 => (0u64..1_000_000_000_000_000, 1usize..10).prop_map(|(m, d)| {
            let digits = format!("{m:0>12}");
            let (a, b) = digits.split_at(digits.len() - d);
            let text = format!("{a}.{b}");
            let value = text.parse().unwrap();
            (text, value)
        }),
        1 => Just((".5".to_owned(), 0.5)),
        1 => Just(("+2e-1".to_owned(), 0.2)),
    ]
}

#[derive(Debug, Clone)]
struct Text {
    lines: Entries,
    text: String,
}

/// A text and what it means.
fn text(odd: bool) -> impl Strategy<Value = Text> {
    let one = if odd {
        odd_label().boxed()
    } else {
        label().boxed()
    };
    let line = (one.clone(), one, any_value(), 0u8..12, any::<bool>());
    (
        proptest::collection::vec(line, 2..60),
        prop_oneof![Just(","), Just("\t"), Just("::"), Just(";"), Just(" ")],
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(lines, gap, bom, end, header)| {
            let mut text = String::new();
            if bom {
                text.push('\u{feff}');
            }
            if header {
                text += &["time", "row", "column", "value"].join(gap);
                text.push('\n');
            }
            let mut meant = Vec::new();
            for (row, column, (shown, value), style, crlf) in lines {
                let quotes = !matches!(gap, "::" | " ");
                let dress = |f: &str| match style {
                    0 if quotes => format!("\"{f}\""),
                    1 if quotes => format!(" {f} "),
                    2 if gap == " " => format!("{f}\t"),
                    _ => f.to_owned(),
                };
                let time = match style {
                    3 if quotes => "\"a\n\"\"b\"",
                    4 => "x",
                    _ => "17",
                };
                let fields = [time.to_owned(), dress(&row), dress(&column), dress(&shown)];
                text += &fields.join(gap);
                text += if crlf { "\r\n" } else { "\n" };
                if style == 5 {
                    text += "\n";
                }
                if style == 6 {
                    text += "\r\n";
                }
                meant.push((row, column, value));
            }
            if end {
                text.pop();
                if text.ends_with('\r') {
                    text.pop();
                }
            }
            Text { lines: meant, text }
        })
}

/// Both ways over one text; the fast one leaves what it cannot do to the strict one.
fn parsed(path: &Path, with_fast: bool) -> (Vec<u8>, Vec<f64>, bool) {
    let spec = MatrixSpec {
        rows: Field::Number(2),
        columns: Field::Number(3),
        values: Some(Field::Number(4)),
        ..by_number(path)
    };
    let mut source = Source::open(&spec, 64).unwrap();
    let plan = source.understood.plan;
    let mut buffer = Vec::new();
    let mut local = Local::new(1 << 12);
    let mut all = Vec::new();
    while let Some(chunk) = source.next(&mut buffer).unwrap() {
        local.begin();
        let at = if with_fast {
            parse::fast(&plan, &buffer, 0, chunk.len, &mut local)
        } else {
            0
        };
        if at < chunk.len {
            strict::strict(
                path,
                &plan,
                &buffer[..chunk.len],
                at,
                chunk.line,
                &mut local,
            )
            .unwrap();
        }
        all.extend_from_slice(&local.out);
    }
    (all, local.values.table().to_vec(), local.wide)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn fast_and_strict_agree(text in text(true)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.csv");
        fs::write(&path, &text.text).unwrap();
        prop_assert_eq!(parsed(&path, true), parsed(&path, false));
    }

    #[test]
    fn texts_mean_what_the_oracle_says(
        text in prop_oneof![text(true), text(false)],
        duplicates in prop_oneof![
            Just(Duplicates::Error), Just(Duplicates::Sum), Just(Duplicates::Mean), Just(Duplicates::Last)
        ],
        cores in 1usize..4,
        memory in prop_oneof![Just(1u64), Just(1 << 30)],
    ) {
        let world = World::new();
        let path = world.file("x.csv", &text.text);
        let spec = MatrixSpec {
            rows: Field::Number(2),
            columns: Field::Number(3),
            values: Some(Field::Number(4)),
            duplicates,
            ..by_number(&path)
        };
        let options = IngestOptions { cores, memory, ..world.options() };
        match (world.ingest_with(&spec, &options), oracle(&text.lines, duplicates)) {
            (Ok(of), Some(expected)) => {
                prop_assert_eq!(entries(&of), expected.clone());
                let max = expected.iter().map(|e| e.2.abs()).fold(0.0, f64::max);
                prop_assert_eq!(of.facts.max_abs, max);
            }
            (Err(told), None) => prop_assert!(told.message.contains("have a second value"), "{}", told),
            (Err(told), Some(expected)) => {
                // A sum may overflow.
                prop_assert!(expected.iter().any(|e| !e.2.is_finite()), "{}", told);
            }
            (Ok(_), None) => prop_assert!(false, "twins were not noticed"),
        }
    }
}
