//! Whole jobs: what a pass costs as the job runs it, in memory and out of core, on one core and two, and what ingest
//! costs beside reading the file. Figures to be believed are the ratios within one run.
//!
//! `cargo bench -p tests --bench job` takes a few minutes and about 3 GB in `target/bench`; with `-- netflix` also the
//! 100 million entries of that shape, and 6 GB more.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use serde_json::Value;
use tests::root;

/// Runs `svdjob` and gives what it prints.
fn svdjob(arguments: &[&str]) -> Vec<u8> {
    let binary = root().join("target/release/svdjob");
    let output = Command::new(binary)
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .expect("svdjob was built");
    assert!(output.status.success(), "svdjob {arguments:?}");
    output.stdout
}

struct Bench {
    folder: PathBuf,
    name: &'static str,
    entries: f64,
}

impl Bench {
    fn new(name: &'static str, entries: f64) -> Self {
        let folder = root().join("target/bench");
        fs::create_dir_all(&folder).expect("target can be written");
        let bench = Self {
            folder,
            name,
            entries,
        };
        if !bench.csv().exists() {
            println!("making {}", bench.csv().display());
            svdjob(&["synth", name, "-o", bench.csv().to_str().expect("UTF-8")]);
        }
        let job = format!(
            "[matrix]\npath = {:?}\nrows = \"userId\"\ncolumns = \"movieId\"\nvalues = \"rating\"\n\
             [factor]\nrank = 100\npower_iterations = 4\n[output]\ndirectory = {:?}\n[resources]\ncache = {:?}\n",
            bench.csv(),
            bench.folder.join("factors"),
            bench.folder.join("cache"),
        );
        fs::write(bench.job(), job).expect("target can be written");
        bench
    }

    fn csv(&self) -> PathBuf {
        self.folder.join(format!("{}.csv", self.name))
    }

    fn job(&self) -> PathBuf {
        self.folder.join(format!("{}.toml", self.name))
    }

    fn run(&self, flags: &[&str]) -> Value {
        let job = self.job();
        let mut arguments = vec![
            "run",
            job.to_str().expect("UTF-8"),
            "--embedded",
            "--json",
            "--quiet",
        ];
        arguments.extend(flags);
        serde_json::from_slice(&svdjob(&arguments)).expect("one JSON object")
    }

    /// Nanoseconds a stored entry of the fastest power pass.
    fn pass(&self, flags: &[&str]) -> f64 {
        let told = self.run(flags);
        phases(&told, "power pass").fold(f64::INFINITY, f64::min) / self.entries * 1e9
    }
}

fn phases<'a>(told: &'a Value, like: &'a str) -> impl Iterator<Item = f64> + 'a {
    told["phases"]
        .as_array()
        .expect("phases")
        .iter()
        .filter(move |phase| phase["name"].as_str().is_some_and(|n| n.starts_with(like)))
        .map(|phase| phase["seconds"].as_f64().expect("seconds"))
}

/// Seconds to read a file and count its lines.
fn reading(path: &Path) -> f64 {
    let started = Instant::now();
    let lines = fs::read(path)
        .expect("the file is there")
        .iter()
        .filter(|&&byte| byte == b'\n')
        .count();
    assert!(lines > 0);
    started.elapsed().as_secs_f64()
}

fn main() {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--bin", "svdjob"])
        .current_dir(root())
        .status();
    assert!(built.is_ok_and(|status| status.success()), "svdjob builds");

    let bench = Bench::new("ml25m", 25_000_095.0);
    println!("\nml25m: 162,541 x 59,047, 25.0 million entries, rank 100 (l = 110)");
    let plain = reading(&bench.csv());
    let ingest = (0..3)
        .map(|_| {
            let told = bench.run(&["--fresh", "--rank", "1", "--power-iterations", "0"]);
            phases(&told, "input").sum::<f64>()
        })
        .fold(f64::INFINITY, f64::min);
    println!(
        "ingest                      {ingest:6.2} s      {:.1} x reading and counting lines",
        ingest / plain
    );
    let two = bench.pass(&["--cores", "2"]);
    let one = bench.pass(&["--cores", "1"]);
    println!("pass, f32, 2 cores          {two:6.2} ns an entry");
    println!(
        "pass, f32, 1 core           {one:6.2} ns an entry   {:.2} x",
        one / two
    );
    let double = bench.pass(&["--cores", "2", "--precision", "f64", "--rank", "102"]);
    println!(
        "pass, f64 (l = 112), 2 cores{double:6.2} ns an entry   {:.2} x f32",
        double / two
    );

    if std::env::args().any(|argument| argument == "netflix") {
        let bench = Bench::new("netflix", 100_480_507.0);
        println!("\nnetflix: 480,189 x 17,770, 100.5 million entries, rank 100 (l = 110)");
        let inside = bench.pass(&["--cores", "2", "--memory", "4 GiB"]);
        println!("pass, in memory             {inside:6.2} ns an entry");
        let told = bench.run(&["--fresh", "--cores", "2", "--memory", "256 MiB"]);
        let outside =
            phases(&told, "power pass").fold(f64::INFINITY, f64::min) / bench.entries * 1e9;
        println!(
            "pass, memory = 256 MiB      {outside:6.2} ns an entry   {:.2} x in memory",
            outside / inside
        );
        let peak = told["peak_memory"].as_f64().unwrap_or(f64::NAN) / f64::from(1 << 20);
        println!(
            "whole job, ingest included  {peak:6.0} MiB at most   {:.2} x the budget",
            peak / 256.0
        );
        println!(
            "                            {:6.1} s",
            told["seconds"].as_f64().unwrap_or(f64::NAN)
        );
    }
}
