//! The cache through what fills it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use super::*;
use crate::{
    ingest::{IngestOptions, Ingested, ingest},
    job::resolved::{Duplicates, Field, MatrixSpec},
};

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn cache(&self) -> Cache {
        self.bounded(u64::MAX)
    }

    fn bounded(&self, max: u64) -> Cache {
        Cache::open(&self.dir.path().join("cache"), max).unwrap()
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn blocks(&self) -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> = fs::read_dir(self.dir.path().join("cache/v1/blocks"))
            .unwrap()
            .flat_map(|d| fs::read_dir(d.unwrap().path()).unwrap())
            .map(|f| f.unwrap().path())
            .collect();
        all.sort();
        all
    }
}

fn bring(cache: &Cache, path: &Path) -> Ingested {
    let spec = MatrixSpec {
        path: path.to_owned(),
        rows: Field::Number(1),
        columns: Field::Number(2),
        values: Some(Field::Number(3)),
        duplicates: Duplicates::Error,
    };
    let options = IngestOptions {
        cache,
        memory: 1 << 30,
        cores: 1,
        fresh: false,
        allow_transpose: false,
    };
    ingest(&spec, &options, &mut |_| {}, &AtomicBool::new(false)).unwrap()
}

#[test]
fn a_changed_file_is_read_again() {
    let world = World::new();
    let cache = world.cache();
    let path = world.file("a.csv", "1,2,3\n");
    assert!(!bring(&cache, &path).reused);
    assert!(bring(&cache, &path).reused);
    fs::write(&path, "1,2,4\n").unwrap();
    let of = bring(&cache, &path);
    assert!(!of.reused);
    assert_eq!(of.facts.max_abs, 4.0);
}

#[test]
fn a_damaged_block_is_told_and_made_again() {
    let world = World::new();
    let cache = world.cache();
    let path = world.file("a.csv", "1,2,3\n4,5,6\n");
    let of = bring(&cache, &path);
    let hash = of.facts.blocks[0].hash;
    let block = world.blocks().pop().unwrap();
    let mut bytes = fs::read(&block).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&block, &bytes).unwrap();
    let error = of.load(&hash).unwrap_err();
    assert!(matches!(error, LoadError::Damaged { .. }) && error.is_cured_by_ingest());
    cache.forget(&of.inputs).unwrap();
    drop(of);
    let of = bring(&cache, &path);
    assert!(!of.reused);
    of.load(&hash).unwrap();
    // A block of another length, or none, is noticed without reading it.
    drop(of);
    fs::write(&block, &bytes[..100]).unwrap();
    assert!(!bring(&cache, &path).reused);
    fs::remove_file(&block).unwrap();
    let of = bring(&cache, &path);
    assert!(!of.reused);
    fs::remove_file(&block).unwrap();
    assert!(matches!(of.load(&hash), Err(LoadError::Missing(_))));
}

#[test]
fn a_manifest_that_cannot_be_read_is_no_manifest() {
    let world = World::new();
    let cache = world.cache();
    let path = world.file("a.csv", "1,2,3\n");
    let of = bring(&cache, &path);
    for ending in ["mpk", "dat"] {
        fs::write(cache.matrix(of.inputs.key(), ending), b"not it").unwrap();
        assert!(!bring(&cache, &path).reused);
        assert!(bring(&cache, &path).reused);
    }
}

#[test]
fn the_least_recently_used_go_first_and_those_in_use_stay() {
    let world = World::new();
    let cache = world.cache();
    let paths: Vec<PathBuf> = (0..3)
        .map(|i| world.file(&format!("{i}.csv"), &format!("1,2,{i}\n3,4,5\n")))
        .collect();
    let used = bring(&cache, &paths[0]);
    for path in &paths[1..] {
        bring(&cache, path);
    }
    // The second was used last.
    let touch = |path: &Path, age: u64| {
        let key = cache
            .list()
            .unwrap()
            .into_iter()
            .find(|l| l.source == fs::canonicalize(path).unwrap())
            .unwrap()
            .key;
        let when = SystemTime::now() - std::time::Duration::from_secs(age);
        let file = fs::File::options()
            .append(true)
            .open(cache.matrix(&key, "mpk"))
            .unwrap();
        file.set_modified(when).unwrap();
    };
    touch(&paths[0], 300);
    touch(&paths[1], 100);
    touch(&paths[2], 200);
    let listed = cache.list().unwrap();
    let names = |of: &[Listed]| -> Vec<String> {
        of.iter()
            .map(|l| l.source.file_name().unwrap().to_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&listed), ["1.csv", "2.csv", "0.csv"]);
    assert!(listed[2].in_use && !listed[0].in_use);
    assert_eq!(
        (listed[0].rows, listed[0].columns, listed[0].nnz),
        (2, 2, 2)
    );
    let two = listed[0].bytes + listed[2].bytes;
    let small = world.bounded(two);
    assert_eq!(names(&small.bound().unwrap()), ["2.csv"]);
    assert_eq!(world.blocks().len(), 2);
    let smaller = world.bounded(0);
    assert_eq!(names(&smaller.bound().unwrap()), ["1.csv"]);
    used.load(&used.facts.blocks[0].hash).unwrap();
    drop(used);
    smaller.bound().unwrap();
    assert!(cache.list().unwrap().is_empty() && world.blocks().is_empty());
}

#[test]
fn a_block_that_two_matrices_share_stays_for_the_other() {
    let world = World::new();
    let cache = world.cache();
    let a = world.file("a.csv", "1,2,3\n");
    let b = world.file("b.csv", "1\t2\t3.0\n");
    bring(&cache, &a);
    bring(&cache, &b);
    assert_eq!(world.blocks().len(), 1);
    let which = Which::Matching(a.to_str().unwrap().to_owned());
    assert_eq!(cache.remove(&which).unwrap().removed.len(), 1);
    let of = bring(&cache, &b);
    assert!(of.reused);
    of.load(&of.facts.blocks[0].hash).unwrap();
    let told = cache.remove(&Which::All).unwrap();
    assert_eq!((told.removed.len(), told.in_use.len()), (0, 1));
    let key = of.inputs.key()[..8].to_owned();
    drop(of);
    assert_eq!(
        cache.remove(&Which::Matching(key)).unwrap().removed.len(),
        1
    );
    assert!(world.blocks().is_empty());
}

#[test]
fn leftovers_and_older_versions_are_swept() {
    let world = World::new();
    drop(world.cache());
    let root = world.dir.path().join("cache");
    let dead = root.join("v1/tmp/ingest-dead");
    fs::create_dir_all(&dead).unwrap();
    fs::write(dead.join("lock"), "").unwrap();
    fs::write(dead.join("entries"), "rubbish").unwrap();
    fs::create_dir_all(root.join("v0/blocks")).unwrap();
    fs::create_dir_all(root.join("v2")).unwrap();
    fs::create_dir_all(root.join("vault")).unwrap();
    let alive = world.cache().stage().unwrap();
    world.cache();
    assert!(!dead.exists() && !root.join("v0").exists());
    assert!(alive.path().exists() && root.join("v2").exists() && root.join("vault").exists());
}
