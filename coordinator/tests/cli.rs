//! `svdjob` as people and scripts meet it: processes, files, exit codes, signals.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A folder with a job, an input and a cache of its own.
struct Place {
    root: tempfile::TempDir,
}

const JOB: &str = r#"
[matrix]
path = "ratings.csv"
rows = "userId"
columns = "movieId"
values = "rating"

[factor]
rank = 4
oversample = 4

[output]
directory = "factors"

[resources]
memory = "1 GiB"
cores = 2
cache = "cache"
"#;

impl Place {
    fn with(input: &str) -> Self {
        let place = Self {
            root: tempfile::tempdir().unwrap(),
        };
        place.put("factor.toml", JOB);
        place.put("ratings.csv", input);
        place
    }

    /// 60 users, 30 films, most of them rated.
    fn usual() -> Self {
        Self::with(&ratings(60, 30))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_svdjob"));
        command
            .args(arguments)
            .current_dir(self.root.path())
            .env_remove("RUST_LOG")
            .env_remove("SVDJOB_CACHE")
            .env_remove("SVDJOB_FARM_KEY")
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs and expects this exit code and these words on stderr.
    fn fails(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let output = self.run(arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{told}");
        // The text is wrapped to a width.
        let flat = told.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words {
            assert!(flat.contains(word), "{word:?} is not in:\n{told}");
        }
        assert!(
            !self.path("factors/manifest.json").exists(),
            "a failed run leaves no result"
        );
        self.nothing_left();
    }

    /// No hidden directory in the output, no staging in the cache.
    fn nothing_left(&self) {
        for folder in ["factors", "cache/v1/tmp"] {
            let left: Vec<_> = fs::read_dir(self.path(folder))
                .into_iter()
                .flatten()
                .map(|entry| entry.unwrap().file_name())
                .filter(|name| folder != "factors" || name.to_string_lossy().starts_with('.'))
                .collect();
            assert!(left.is_empty(), "{left:?} is left in {folder}");
        }
    }

    fn hashes(&self) -> Vec<blake3::Hash> {
        ["U.npy", "S.npy", "Vt.npy", "rows.csv", "columns.csv"]
            .map(|name| blake3::hash(&fs::read(self.path("factors").join(name)).unwrap()))
            .to_vec()
    }
}

fn succeeded(output: &Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn ratings(users: u32, films: u32) -> String {
    let mut text = String::from("userId,movieId,rating,timestamp\n");
    let mut state = 7u32;
    for user in 1..=users {
        for film in 1..=films {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if state >> 30 != 0 {
                let stars = f64::from(1 + (state >> 8) % 10) / 2.0;
                text += &format!("{user},{},{stars:.1},964982703\n", film * 10);
            }
        }
    }
    text
}

const RUN: &[&str] = &["run", "factor.toml"];

#[test]
fn a_run_leaves_all_files_and_the_second_one_reads_nothing() {
    let place = Place::usual();
    let first = place.run(RUN);
    succeeded(&first);
    assert!(String::from_utf8_lossy(&first.stdout).contains("sigma"));
    let files = place.hashes();
    assert!(
        fs::read(place.path("factors/U.npy"))
            .unwrap()
            .starts_with(b"\x93NUMPY")
    );
    let rows = fs::read_to_string(place.path("factors/rows.csv")).unwrap();
    assert!(rows.starts_with("index,label\n0,1\n1,2\n"), "{rows}");
    place.nothing_left();

    let second = place.run(RUN);
    succeeded(&second);
    assert!(String::from_utf8_lossy(&second.stderr).contains("is in the cache"));
    assert_eq!(files, place.hashes());

    // A changed file is noticed, though its size is the same.
    let text = fs::read_to_string(place.path("ratings.csv")).unwrap();
    let changed = text.replacen("4.5", "0.5", 1);
    assert_ne!(text, changed);
    place.put("ratings.csv", &changed);
    let third = place.run(RUN);
    succeeded(&third);
    assert!(!String::from_utf8_lossy(&third.stderr).contains("is in the cache"));
    assert_ne!(files, place.hashes());
}

#[test]
fn cores_and_memory_do_not_change_a_bit_and_neither_does_the_order_of_lines() {
    let place = Place::with(&ratings(900, 300));
    succeeded(&place.run(RUN));
    let files = place.hashes();
    for flags in [["--cores", "1"], ["--cores", "5"], ["--memory", "80 MiB"]] {
        let output = place.run(&[RUN, &flags, &["--fresh"]].concat());
        succeeded(&output);
        assert_eq!(files, place.hashes(), "{flags:?}");
    }
    let text = fs::read_to_string(place.path("ratings.csv")).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines[1..].reverse();
    place.put("ratings.csv", &(lines.join("\r\n") + "\r\n\r\n"));
    succeeded(&place.run(RUN));
    assert_eq!(files, place.hashes());
}

#[test]
fn json_is_one_object_and_quiet_is_quiet() {
    let place = Place::usual();
    let output = place.run(&["run", "factor.toml", "--json", "--quiet"]);
    succeeded(&output);
    assert!(output.stderr.is_empty());
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["sigma"].as_array().unwrap().len(), 4);
    assert_eq!(told["residuals"].as_array().unwrap().len(), 4);
    let text = fs::read_to_string(place.path("factors/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    for key in [
        "job",
        "plan",
        "matrix",
        "sigma",
        "residuals",
        "files",
        "isa",
    ] {
        assert!(!manifest[key].is_null(), "{key}");
    }
    for file in manifest["files"].as_array().unwrap() {
        let name = file["name"].as_str().unwrap();
        let hash = blake3::hash(&fs::read(place.path("factors").join(name)).unwrap());
        assert_eq!(file["blake3"], hash.to_hex().as_str(), "{name}");
    }
}

#[test]
fn less_rank_than_asked_is_said_in_words_and_is_no_failure() {
    // Every user gives the same stars: rank 1.
    let mut text = String::from("userId,movieId,rating\n");
    for user in 1..=20 {
        for film in 1..=12 {
            text += &format!("{user},{film},{}\n", film % 5 + 1);
        }
    }
    let place = Place::with(&text);
    let output = place.run(RUN);
    succeeded(&output);
    let told = String::from_utf8_lossy(&output.stdout).to_lowercase();
    assert!(told.contains("rank"), "{told}");
    let header = fs::read(place.path("factors/U.npy")).unwrap();
    assert!(String::from_utf8_lossy(&header[..128]).contains("(20, 1)"));
}

#[test]
fn inputs_that_will_not_do() {
    let missing = Place::usual();
    fs::remove_file(missing.path("ratings.csv")).unwrap();
    missing.fails(RUN, 3, &["ratings.csv"]);

    let folder = Place::usual();
    fs::remove_file(folder.path("ratings.csv")).unwrap();
    fs::create_dir(folder.path("ratings.csv")).unwrap();
    folder.fails(RUN, 3, &["ratings.csv", "director"]);

    Place::with("").fails(RUN, 3, &["empty"]);
    Place::with("userId,movieId,rating\n").fails(RUN, 3, &["ratings.csv"]);

    let header = "userId,movieId,rating\n";
    let bad = |line: &str| Place::with(&format!("{header}1,1,3.5\n{line}\n2,2,1\n"));
    bad("1,2,great").fails(RUN, 3, &["ratings.csv:3:5", "great"]);
    bad("1,2,NaN").fails(RUN, 3, &["ratings.csv:3:5", "NaN"]);
    bad("1,2,inf").fails(RUN, 3, &["ratings.csv:3:5", "inf"]);
    bad("1,2").fails(RUN, 3, &["ratings.csv:3"]);
    bad("1,1,4").fails(RUN, 3, &["1", "duplicates"]);

    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(ratings(200, 100).as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    let truncated = Place::usual();
    fs::write(
        truncated.path("ratings.csv.gz"),
        &packed[..packed.len() / 2],
    )
    .unwrap();
    truncated.fails(
        &["run", "factor.toml", "--input", "ratings.csv.gz"],
        3,
        &["ratings.csv.gz"],
    );
    fs::write(truncated.path("ratings.csv.gz"), &packed).unwrap();
    succeeded(&truncated.run(&["run", "factor.toml", "--input", "ratings.csv.gz"]));
}

#[test]
fn jobs_that_will_not_do() {
    let place = Place::usual();
    place.fails(&["run", "nothing.toml"], 2, &["nothing.toml"]);
    place.fails(&["run", "factor.toml", "--rank", "31"], 2, &["at most 30"]);
    place.fails(&["run", "--no-such-flag"], 2, &["--no-such-flag"]);
    place.put("wrong.toml", &JOB.replace("movieId", "movieid"));
    place.fails(&["run", "wrong.toml"], 2, &["movieId"]);
    place.put(
        "many.toml",
        "[matrix]\npath = \"ratings.csv\"\nrosw = 1\n[factor]\nrank = \"big\"\nprecision = \"f16\"\n",
    );
    for command in ["run", "check"] {
        place.fails(
            &[command, "many.toml"],
            2,
            &[
                "many.toml:3:1",
                "rows",
                "many.toml:5:8",
                "many.toml:6:13",
                "f32",
            ],
        );
    }
    succeeded(&place.run(&["check", "factor.toml"]));
    assert!(!place.path("factors").exists(), "check makes nothing");
}

/// What `svdjob check` says with these flags on the line that begins with `word`.
fn checked(place: &Place, flags: &[&str], word: &str) -> String {
    let output = place.run(&[&["check", "factor.toml"], flags].concat());
    succeeded(&output);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = told.lines().find_map(|line| line.strip_prefix(word));
    line.unwrap_or_else(|| panic!("no {word}: {told}"))
        .trim()
        .to_owned()
}

#[test]
fn check_says_in_words_what_will_be_done() {
    let place = Place::usual();
    for (flags, word, said) in [
        (
            &[][..],
            "Accuracy",
            "until every residual is below 1e-2, at most 60 reads",
        ),
        (
            &["--tolerance", "0.0025", "--max-reads", "1000"],
            "Accuracy",
            "until every residual is below 2.5e-3, at most 1,000 reads",
        ),
        (
            &["--tolerance-kind", "sigma"],
            "Accuracy",
            "until the relative error of every sigma is below 1e-2, at most 60 reads",
        ),
        (
            &["--power-iterations", "7"],
            "Accuracy",
            "whatever 7 power iterations give",
        ),
        (
            &["--power-iterations", "7"],
            "Method",
            "a sketch and power iterations",
        ),
        (&[], "Method", "the one that suits the matrix"),
        (
            &["--method", "krylov", "--block", "8", "--basis", "16"],
            "Method",
            "block Krylov, blocks of 8 columns, at most 16 columns of the basis kept",
        ),
        (
            &[],
            "Factors",
            "4 triplets, 4 more in the sketch, f32, seed 0",
        ),
        (
            &["--energy", "0.55"],
            "Factors",
            "as many triplets as explain 55 % of the sum of squares, 4 more in the sketch, f32, seed 0",
        ),
    ] {
        assert_eq!(checked(&place, flags, word), said, "{flags:?}");
    }
    place.put(
        "factor.toml",
        &JOB.replace("oversample = 4", "power_iterations = 4"),
    );
    assert_eq!(
        checked(&place, &["--tolerance", "1e-3"], "Accuracy"),
        "until every residual is below 1e-3, at most 60 reads"
    );
    place.put(
        "factor.toml",
        &JOB.replace("rank = 4", "energy = 0.9\ntolerance = 1e-3"),
    );
    assert_eq!(
        checked(&place, &["--power-iterations", "2"], "Accuracy"),
        "whatever 2 power iterations give"
    );
    assert!(checked(&place, &["--rank", "3"], "Factors").starts_with("3 triplets,"));
}

#[test]
fn factors_that_are_not_wanted() {
    let place = Place::usual();
    assert!(checked(&place, &[], "Output").ends_with("factors: U, S and Vt"));
    assert!(checked(&place, &["--which", "sv"], "Output").ends_with(": S and Vt"));
    assert!(checked(&place, &["--which", "s"], "Output").ends_with(": S alone"));
    place.fails(
        &[RUN, &["--which", "v"]].concat(),
        2,
        &["possible values: usv, sv, s"],
    );
    let files = |place: &Place| {
        let mut names: Vec<String> = fs::read_dir(place.path("factors"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names.retain(|name| name != "certificate.json" && name != "manifest.json");
        names.join(" ")
    };
    // The second one is worked on as its transpose, so its V takes the last pass.
    for (place, spared) in [(place, 1), (Place::with(&ratings(30, 60)), 0)] {
        for (how, before) in [("--tolerance=1e-3", 3), ("--power-iterations=2", 5)] {
            let run = |which: &str| {
                let output = place.run(&["run", "factor.toml", how, "--which", which, "--json"]);
                succeeded(&output);
                serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
            };
            let planned = |which: &str| {
                let output = place.run(&["plan", "factor.toml", how, "--which", which, "--json"]);
                succeeded(&output);
                let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                told["forecast"]["reads"].as_u64().unwrap()
            };
            let read = |name: &str| fs::read(place.path("factors").join(name)).unwrap();
            run("usv");
            assert_eq!(files(&place), "S.npy U.npy Vt.npy columns.csv rows.csv");
            let (s, vt) = (read("S.npy"), read("Vt.npy"));
            let told = run("sv");
            assert_eq!(files(&place), "S.npy Vt.npy columns.csv");
            assert_eq!((read("S.npy"), read("Vt.npy")), (s.clone(), vt));
            assert_eq!(told["passes"].as_u64(), Some(before - spared));
            assert_eq!(planned("sv"), before - spared);
            assert_eq!(told["orthogonality"]["u"].is_null(), spared == 1);
            let told = run("s");
            assert_eq!(files(&place), "S.npy");
            assert_eq!(read("S.npy"), s);
            assert_eq!(told["passes"].as_u64(), Some(before - 1));
            assert_eq!(planned("s"), before - 1);
            assert_eq!(told["certificate"]["worst"].is_null(), before == 5);
        }
    }
}

#[test]
fn what_an_earlier_run_has_subtracted_does_not_stay_beside_other_factors() {
    let place = Place::usual();
    let both = [
        "run",
        "factor.toml",
        "--center",
        "both",
        "--scale",
        "columns",
    ];
    succeeded(&place.run(&both));
    let names = ["column_means.npy", "row_means.npy", "column_deviations.npy"];
    let there = |name: &&str| place.path("factors").join(name).exists();
    assert!(names.iter().all(there));
    succeeded(&place.run(RUN));
    assert!(!names.iter().any(there));
}

#[test]
fn centring_is_said_in_words() {
    let place = Place::usual();
    for (flags, said) in [
        (&[][..], "none"),
        (
            &["--center", "both"],
            "means of rows and columns are subtracted; absent entries are taken as 0",
        ),
        (
            &["--center", "observed-rows"],
            "means of rows are subtracted; absent entries are unknown; only those that are there are moved",
        ),
    ] {
        assert_eq!(checked(&place, flags, "Centring"), said);
    }
}

#[test]
fn scaling_is_said_in_words() {
    let place = Place::usual();
    assert_eq!(checked(&place, &[], "Scaling"), "none");
    let scaled = ["--scale", "columns"];
    assert_eq!(
        checked(&place, &scaled, "Scaling"),
        "columns to unit variance"
    );
    place.fails(
        &[RUN, &["--scale", "rows"]].concat(),
        2,
        &["possible values: none, columns"],
    );
}

#[test]
fn a_warm_start_that_will_not_do() {
    let place = Place::with(&ratings(3000, 200));
    assert_eq!(checked(&place, &[], "Begins with"), "a random sketch");
    let begin = ["--warm-start", "old"];
    place.fails(
        &[RUN, &begin].concat(),
        3,
        &["what to begin with cannot be read", "there is no"],
    );
    fs::create_dir(place.path("old")).unwrap();
    place.put("old/Vt.npy", "");
    let said = checked(&place, &begin, "Begins with");
    assert!(said.ends_with("old/Vt.npy"), "{said}");
    place.fails(
        &[RUN, &begin].concat(),
        3,
        &["what to begin with cannot be read", "Vt.npy"],
    );
    succeeded(&place.run(&[RUN, &["-o", "old"]].concat()));
    place.fails(
        &[RUN, &begin, &["--power-iterations", "2"]].concat(),
        2,
        &["warm_start with power_iterations is not possible"],
    );
    let labels = fs::read_to_string(place.path("old/columns.csv")).unwrap();
    place.put("old/columns.csv", &labels.replace(',', ",of others "));
    place.fails(
        &[RUN, &begin].concat(),
        3,
        &["are of another matrix: not one of their 200 columns"],
    );
    place.put("old/columns.csv", "index,label\n0,1\n");
    place.fails(
        &[RUN, &begin].concat(),
        3,
        &["it has 1 labels, and Vt.npy 200"],
    );
    // A matrix small enough for the exact method needs no beginning.
    place.put("ratings.csv", &ratings(60, 30));
    let output = place.run(&[RUN, &begin].concat());
    succeeded(&output);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("warm_start is not used"), "{told}");
}

/// Also where it is U that the matrix, worked on as its transpose, begins with.
#[test]
fn a_warm_start_spares_reads() {
    for (rows, columns) in [(3000, 200), (200, 3000)] {
        let place = Place::with(&ratings(rows, columns));
        let json = |arguments: &[&str]| -> serde_json::Value {
            let more = ["--tolerance", "1e-4", "--json"];
            let output = place.run(&[RUN, &more, arguments].concat());
            succeeded(&output);
            serde_json::from_slice(&output.stdout).unwrap()
        };
        let passes = |told: &serde_json::Value| told["passes"].as_u64().unwrap();
        let cold = passes(&json(&["-o", "old"]));
        let begin = ["--warm-start", "old"];
        let warm = json(&begin);
        assert_eq!(warm["certificate"]["status"], "converged");
        assert!(3 * passes(&warm) <= 2 * cold, "{} of {cold}", passes(&warm));
        assert_eq!(warm["warnings"].as_array().unwrap().len(), 0);

        // Equal bits, also by the plan of the run before, which wants the same beginning.
        let first = place.hashes();
        json(&[&begin[..], &["-j", "1", "--fresh"]].concat());
        assert_eq!(place.hashes(), first);
        let manifest = place.path("factors/manifest.json");
        fs::rename(&manifest, place.path("warm.json")).unwrap();
        let again = ["run", "factor.toml", "--plan", "warm.json"];
        succeeded(&place.run(&[&again[..], &begin].concat()));
        assert_eq!(place.hashes(), first);
        fs::remove_file(&manifest).unwrap();
        place.fails(
            &again,
            2,
            &["the plan begins with factors of an earlier run"],
        );

        // Two labels that the earlier run did not have, and what it had in their place.
        let (labels, factor) = if rows > columns {
            ("old/columns.csv", "old/Vt.npy")
        } else {
            ("old/rows.csv", "old/U.npy")
        };
        let lines = fs::read_to_string(place.path(labels)).unwrap();
        let other: Vec<String> = lines
            .lines()
            .map(|line| match line.split_once(',') {
                Some((at @ ("3" | "7"), _)) => format!("{at},gone {at}"),
                _ => line.to_owned(),
            })
            .collect();
        place.put(labels, &(other.join("\n") + "\n"));
        place.fails(
            &[&again[..], &begin].concat(),
            2,
            &["the plan began with other factors"],
        );
        let told = json(&begin);
        assert_eq!(told["certificate"]["status"], "converged");
        let said = told["warnings"][0].as_str().unwrap();
        assert!(
            said.contains("2 of 200") && said.contains("are new"),
            "{said}"
        );
        assert!(said.contains("the first is \"gone 3\""), "{said}");

        // Garbage: what the file holds is no help, and no harm.
        let mut bytes = fs::read(place.path(factor)).unwrap();
        for byte in &mut bytes[128..] {
            *byte = 0xff;
        }
        fs::write(place.path(factor), bytes).unwrap();
        let told = json(&begin);
        assert_eq!(told["certificate"]["status"], "converged");
    }
}

#[test]
fn flags_that_will_not_do() {
    let place = Place::usual();
    for (flags, words) in [
        (
            &["--tolerance", "1"][..],
            "expected a number more than 0 and less than 1",
        ),
        (&["--tolerance", "nan"], "such as 1e-2"),
        (
            &["--energy", "1.5"],
            "expected a number more than 0 and at most 1",
        ),
        (
            &["--tolerance-kind", "sigmas"],
            "possible values: residual, sigma",
        ),
        (
            &["--method", "lanczos"],
            "possible values: auto, krylov, exact, gram",
        ),
        (&["--max-reads", "3"], "expected a whole number, 4 or more"),
        (&["--block", "0"], "expected a whole number, 1 or more"),
        (&["--basis", "1"], "expected a whole number, 2 or more"),
        (&["--rank", "0"], "expected a whole number, 1 or more"),
        (
            &["--block", "8", "--basis", "15"],
            "--basis 15 is too small for --block 8",
        ),
        (
            &["--rank", "3", "--energy", "0.5"],
            "'--rank <K>' cannot be used with '--energy <SHARE>'",
        ),
    ] {
        place.fails(&[RUN, flags].concat(), 2, &[words]);
    }
    for other in [
        ["--tolerance", "1e-2"],
        ["--tolerance-kind", "sigma"],
        ["--max-reads", "9"],
        ["--method", "krylov"],
    ] {
        let flags = [RUN, &["--power-iterations", "4"], &other].concat();
        place.fails(
            &flags,
            2,
            &["--power-iterations <Q>", other[0], "cannot be used with"],
        );
    }
    place.fails(
        &[RUN, &["--energy", "0.5", "--power-iterations", "2"]].concat(),
        2,
        &["energy = 0.5 with power_iterations", "ask for a rank"],
    );
}

#[test]
fn resources_that_will_not_do() {
    let place = Place::usual();
    place.fails(
        &["run", "factor.toml", "--memory", "20 MiB"],
        4,
        &["memory", "MiB"],
    );
    place.put("file", "");
    place.fails(&["run", "factor.toml", "--output", "file"], 4, &["file"]);
    place.fails(&["run", "factor.toml", "--cache", "file"], 4, &["file"]);
}

/// A disk of two megabytes, in a user namespace of its own.
#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let place = Place::with(&ratings(3000, 200));
    fs::create_dir(place.path("small")).unwrap();
    let script = "mount -t tmpfs -o size=2m none small && \"$@\"; code=$?; find small/factors \
                  small/cache/v1/tmp -mindepth 1 2>/dev/null; exit $code";
    let with_full = |flags: &[&str]| {
        Command::new("unshare")
            .args([
                "--user",
                "--map-root-user",
                "--mount",
                "sh",
                "-c",
                script,
                "sh",
            ])
            .arg(env!("CARGO_BIN_EXE_svdjob"))
            .args(["run", "factor.toml"])
            .args(flags)
            .current_dir(place.root.path())
            .output()
    };
    match with_full(&["--output", "small/factors", "--cache", "small/cache"]) {
        Ok(output) if String::from_utf8_lossy(&output.stderr).contains("unshare:") => {
            eprintln!("SKIPPED: no user namespaces here, a full disk cannot be tried");
        }
        Err(why) => eprintln!("SKIPPED: no unshare here ({why}), a full disk cannot be tried"),
        Ok(output) => {
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(4), "{told}");
            assert!(told.contains("free") || told.contains("full"), "{told}");
            assert!(
                output.stdout.is_empty(),
                "left: {}",
                String::from_utf8_lossy(&output.stdout)
            );
        }
    }
}

impl Place {
    /// `svdjob` whose files may not grow beyond so many bytes.
    #[cfg(unix)]
    fn run_with_short_files(&self, bytes: u64, arguments: &[&str]) -> Output {
        let plain = self.command(arguments);
        let mut command = Command::new("sh");
        // Of 512 bytes each, says POSIX.
        command
            .args([
                "-c",
                &format!("ulimit -f {} && exec \"$@\"", bytes / 512),
                "sh",
            ])
            .arg(plain.get_program())
            .args(plain.get_args())
            .current_dir(self.root.path())
            .stdin(Stdio::null());
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.output().unwrap()
    }
}

#[cfg(unix)]
#[test]
fn files_that_may_not_grow_are_told_and_the_old_result_stays() {
    let place = Place::with(&ratings(3000, 200));
    succeeded(&place.run(RUN));
    let files = place.hashes();
    let refused = |output: &Output, word: &str| {
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{told}");
        for word in [word, "too large", "help"] {
            assert!(told.contains(word), "{word:?} is not in:\n{told}");
        }
        assert_eq!(files, place.hashes());
        place.nothing_left();
    };
    let wide = ["run", "factor.toml", "--rank", "80"];
    refused(&place.run_with_short_files(256 << 10, &wide), "U.npy");
    // The block of this input, and what it is sorted by, are longer.
    let anew = ["run", "factor.toml", "--cache", "cache"];
    fs::remove_dir_all(place.path("cache")).unwrap();
    refused(&place.run_with_short_files(256 << 10, &anew), "cache");
}

/// What is kept for another run is longer here than anything else.
#[cfg(unix)]
#[test]
fn results_too_long_to_be_kept_only_end_the_keeping() {
    let place = Place::with(&ratings(400, 300));
    let narrow = "run factor.toml --rank 2 --oversample 60 --power-iterations 4";
    let narrow: Vec<&str> = narrow.split(' ').collect();
    succeeded(&place.run(&narrow));
    let files = place.hashes();
    let loud = [&narrow[..], &["-v"]].concat();
    let output = place.run_with_short_files(16 << 10, &loud);
    succeeded(&output);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("nothing more is kept"), "{told}");
    assert_eq!(files, place.hashes());
    assert_eq!(kept(&place), 0);
}

/// A disk that had room when the run began is filled by somebody else: what is kept for another run ends first, then the
/// run. The old result stays, and with room again the run goes on where it was.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_during_a_run() {
    let place = Place::with(&ratings(900, 300));
    fs::create_dir(place.path("small")).unwrap();
    let script = r#"
        mount -t tmpfs -o size=16m none small || exit 99
        sums() { (cd small/factors && cat U.npy S.npy Vt.npy | cksum); }
        "$@" || exit 98
        before=$(sums)
        "$@" --power-iterations 1000 &
        run=$!
        until ls small/cache/v1/spools/*/*.kept >/dev/null 2>&1; do
            kill -0 $run || exit 97
            sleep 0.02
        done
        dd if=/dev/zero of=small/filler bs=4096 2>/dev/null
        wait $run
        echo "code $?"
        [ "$before" = "$(sums)" ] || echo "the old result has changed"
        find small/factors small/cache/v1/tmp -mindepth 1 -name '.*'
        rm small/filler
        "$@" --power-iterations 1000
        echo "code $?"
    "#;
    let output = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
        ])
        .arg(env!("CARGO_BIN_EXE_svdjob"))
        .args(["run", "factor.toml", "--cores", "1", "-v"])
        .args(["--output", "small/factors", "--cache", "small/cache"])
        .current_dir(place.root.path())
        .env("XDG_CONFIG_HOME", place.path("config"))
        .env_remove("SVDJOB_FARM_KEY")
        .env_remove("RUST_LOG")
        .output();
    let output = match output {
        Ok(output) if output.status.code() != Some(99) && output.status.code() != Some(1) => output,
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr);
            return eprintln!(
                "SKIPPED: no disk of its own here ({why}), a full one cannot be tried"
            );
        }
        Err(why) => {
            return eprintln!("SKIPPED: no unshare here ({why}), a full disk cannot be tried");
        }
    };
    let (said, told) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let lines: Vec<&str> = said.lines().filter(|l| !l.starts_with(' ')).collect();
    let codes: Vec<&&str> = lines.iter().filter(|l| l.starts_with("code ")).collect();
    assert_eq!(codes, [&"code 4", &"code 0"], "{said}{told}");
    assert!(
        !said.contains("has changed") && !said.contains("small/factors/."),
        "{said}"
    );
    for words in [
        "nothing more is kept for another run",
        "full",
        "resuming at",
    ] {
        assert!(told.contains(words), "{words:?} is not in:\n{told}");
    }
}

#[test]
fn a_damaged_cache_is_made_again() {
    let place = Place::usual();
    succeeded(&place.run(RUN));
    let files = place.hashes();
    let block = find(&place.path("cache"), "blk");
    let mut bytes = fs::read(&block).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&block, &bytes).unwrap();
    let output = place.run(RUN);
    succeeded(&output);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("damaged"), "{told}");
    assert_eq!(files, place.hashes());
    fs::remove_file(&block).unwrap();
    succeeded(&place.run(RUN));
    assert_eq!(files, place.hashes());
}

fn find(folder: &Path, ending: &str) -> PathBuf {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == ending) {
                return path;
            }
        }
    }
    panic!("no .{ending} file");
}

#[test]
fn the_cache_is_listed_and_emptied() {
    let place = Place::usual();
    succeeded(&place.run(RUN));
    let list = place.run(&["cache", "ls", "--cache", "cache"]);
    succeeded(&list);
    assert!(String::from_utf8_lossy(&list.stdout).contains("ratings.csv"));
    succeeded(&place.run(&["cache", "rm", "--all", "--cache", "cache"]));
    let list = place.run(&["cache", "ls", "--cache", "cache", "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    assert!(told["inputs"].as_array().unwrap().is_empty());
}

/// Starts a run of a few seconds and waits until `path` shows that it is at work.
fn started(place: &Place, path: &str) -> std::process::Child {
    started_with(place, path, "4000")
}

fn started_with(place: &Place, path: &str, iterations: &str) -> std::process::Child {
    let mut child = place
        .command(&[
            "run",
            "factor.toml",
            "--power-iterations",
            iterations,
            "--cores",
            "1",
        ])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let hidden = |folder: &Path| {
        fs::read_dir(folder).is_ok_and(|entries| {
            entries
                .flatten()
                .any(|e| e.file_name().to_string_lossy().starts_with(".svdjob-"))
        })
    };
    while !hidden(&place.path(path)) {
        assert!(Instant::now() < deadline, "the run did not begin");
        assert_eq!(child.try_wait().unwrap(), None, "the run ended early");
        thread::yield_now();
    }
    child
}

#[cfg(unix)]
fn signal(child: &std::process::Child, signal: &str) {
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args([signal, &id])
            .status()
            .unwrap()
            .success()
    );
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_the_old_result_whole() {
    let place = Place::with(&ratings(900, 300));
    succeeded(&place.run(RUN));
    let files = place.hashes();
    let mut child = started(&place, "factors");
    // Twice at once, as `timeout` and some shells do.
    signal(&child, "-INT");
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(files, place.hashes());
    place.nothing_left();
}

#[cfg(unix)]
#[test]
fn what_a_killed_run_left_is_swept_by_the_next() {
    let place = Place::with(&ratings(900, 300));
    succeeded(&place.run(RUN));
    let files = place.hashes();
    let mut child = started(&place, "factors");
    signal(&child, "-KILL");
    child.wait().unwrap();
    assert_eq!(files, place.hashes());
    succeeded(&place.run(RUN));
    assert_eq!(files, place.hashes());
    place.nothing_left();
}

/// Killed once something is kept, however it is killed, a run goes on from there and comes to the same bytes.
#[cfg(unix)]
#[test]
fn a_killed_run_goes_on_where_it_was() {
    const LONG: &[&str] = &[
        "run",
        "factor.toml",
        "--power-iterations",
        "1000",
        "--cores",
        "1",
    ];
    let undisturbed = Place::with(&ratings(900, 300));
    succeeded(&undisturbed.run(LONG));
    let place = Place::with(&ratings(900, 300));
    for (end, how) in ["-KILL", "-INT", "-KILL"].into_iter().enumerate() {
        let mut child = started_with(&place, "factors", "1000");
        let before = kept(&place);
        let deadline = Instant::now() + Duration::from_secs(30);
        while kept(&place) < before + 20 {
            assert!(Instant::now() < deadline, "nothing is kept");
            assert_eq!(child.try_wait().unwrap(), None, "the run ended early");
            thread::yield_now();
        }
        signal(&child, how);
        child.wait().unwrap();
        assert!(kept(&place) > 0, "end {end}");
    }
    let output = place.run(LONG);
    succeeded(&output);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("resuming at power pass"), "{told}");
    assert!(told.contains("kept by a run before"), "{told}");
    assert_eq!(undisturbed.hashes(), place.hashes());
    place.nothing_left();
    assert_eq!(kept(&place), 0, "what ended well keeps nothing");

    let mut child = started_with(&place, "factors", "1000");
    while kept(&place) == 0 {
        assert_eq!(child.try_wait().unwrap(), None, "the run ended early");
        thread::yield_now();
    }
    signal(&child, "-KILL");
    child.wait().unwrap();
    let output = place.run(&[LONG, &["--fresh"]].concat());
    succeeded(&output);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!told.contains("resuming"), "{told}");
    assert_eq!(undisturbed.hashes(), place.hashes());
}

/// The highest task of which something is kept: it grows from pass to pass.
#[cfg(unix)]
fn kept(place: &Place) -> u32 {
    let folders = fs::read_dir(place.path("cache/v1/spools"));
    folders
        .into_iter()
        .flatten()
        .flatten()
        .flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten())
        .filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            name.strip_suffix(".kept").map(|_| file.path())
        })
        .filter_map(|path| fs::read(path).ok())
        .flat_map(|records| tasks_of(&records))
        .max()
        .unwrap_or(0)
}

/// The tasks of whole records of a spool's file.
#[cfg(unix)]
fn tasks_of(mut records: &[u8]) -> Vec<u32> {
    let mut tasks = Vec::new();
    while let Some((head, rest)) = records.split_at_checked(72) {
        let task = u32::from_le_bytes(head[8..12].try_into().unwrap());
        let length = u64::from_le_bytes(head[48..56].try_into().unwrap());
        let Some((_, rest)) = rest.split_at_checked(length as usize) else {
            break;
        };
        tasks.push(task);
        records = rest;
    }
    tasks
}

#[test]
fn help_tells_the_exit_codes() {
    let place = Place::usual();
    for arguments in [["--help"].as_slice(), &["run", "--help"]] {
        let output = place.run(arguments);
        succeeded(&output);
        let told = String::from_utf8_lossy(&output.stdout);
        for word in ["130", "70", "factor.toml"] {
            assert!(told.contains(word), "{word} in\n{told}");
        }
    }
}

#[test]
fn a_farm_is_made_once_and_its_key_is_never_shown() {
    let place = Place::usual();
    place.fails(
        &["farm", "show"],
        5,
        &["belongs to no farm", "svdjob farm init"],
    );
    place.fails(&["nodes"], 5, &["belongs to no farm", "svdjob farm init"]);
    let made = place.run(&["farm", "init"]);
    succeeded(&made);
    let told = String::from_utf8_lossy(&made.stdout).into_owned();
    let path = place.path("config/svdjob/farm.pem");
    let shown = path.display().to_string();
    for words in [
        &shown,
        "ssh HOST mkdir -p -m 700 .config/svdjob",
        "ssh HOST svdnode",
        "scp ",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let key = fs::read(&path).unwrap();
    assert!(!told.contains("PRIVATE"));

    place.fails(
        &["farm", "init"],
        2,
        &["exists already", "svdjob farm show", "mv "],
    );
    assert_eq!(fs::read(&path).unwrap(), key);

    let show = place.run(&["farm", "show", "--json"]);
    succeeded(&show);
    let object: serde_json::Value = serde_json::from_slice(&show.stdout).unwrap();
    assert_eq!(object["path"], shown);
    let fingerprint = object["fingerprint"].as_str().unwrap();
    assert!(told.contains(fingerprint), "{told}");
    assert!(!String::from_utf8_lossy(&show.stdout).contains("PRIVATE"));

    let other = place.run(&["farm", "init", "--json", "--farm-key", "other.pem"]);
    succeeded(&other);
    let object: serde_json::Value = serde_json::from_slice(&other.stdout).unwrap();
    assert_ne!(object["fingerprint"], fingerprint);
    assert_eq!(object["commands"].as_array().unwrap().len(), 3);
    place.put("broken.pem", "no key\n");
    place.fails(
        &["farm", "show", "--farm-key", "broken.pem"],
        2,
        &["is not a farm key", "anew"],
    );
}

#[test]
fn nodes_that_do_not_answer_are_told_with_what_was_asked() {
    let place = Place::usual();
    succeeded(&place.run(&["farm", "init"]));
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let ask = [
        "nodes",
        "--no-discover",
        "--window",
        "300ms",
        "--node",
        &address,
    ];
    let told = place.run(&ask);
    succeeded(&told);
    let table = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(
        table.contains("silent") && table.contains("1 node, none ready"),
        "{table}"
    );
    let told = place.run(&[&ask[..], &["--json"]].concat());
    let object: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(object["nodes"][0]["state"], "silent");
    place.fails(
        &["nodes", "--no-discover", "--window", "100 ms"],
        5,
        &["no node was found"],
    );
    place.fails(
        &["nodes", "--node", "alice@big1"],
        2,
        &["belongs to SSH only"],
    );
}

#[test]
fn a_plan_is_shown_and_repeated_to_the_same_bits() {
    let place = Place::with(&ratings(300, 200));
    let shown = place.run(&["plan", "factor.toml"]);
    succeeded(&shown);
    let text = String::from_utf8(shown.stdout).unwrap();
    for word in [
        "block Krylov",
        "at most 60",
        "measured on this machine",
        "one machine is enough",
        "kept in memory",
    ] {
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(word), "{word:?} is not in:\n{text}");
    }
    assert!(!place.path("factors").exists(), "nothing is factored");

    let planned = place.run(&["plan", "factor.toml", "--json", "--seed", "5"]);
    succeeded(&planned);
    place.put("plan.json", &String::from_utf8(planned.stdout).unwrap());
    succeeded(&place.run(&["run", "factor.toml", "--plan", "plan.json"]));
    let first = place.hashes();
    // The manifest keeps the plan, too, and stands above what the job file says.
    fs::rename(place.path("factors/manifest.json"), place.path("old.json")).unwrap();
    place.put("factor.toml", &JOB.replace("rank = 4", "rank = 7"));
    succeeded(&place.run(&["run", "factor.toml", "--plan", "old.json", "--seed", "5"]));
    assert_eq!(place.hashes(), first);
    succeeded(&place.run(&["run", "factor.toml", "--rank", "4"]));
    assert_ne!(place.hashes(), first, "another seed");
}

#[test]
fn a_plan_that_does_not_fit_is_refused() {
    let place = Place::with(&ratings(300, 200));
    let planned = place.run(&["plan", "factor.toml", "--json"]);
    succeeded(&planned);
    place.put("plan.json", &String::from_utf8(planned.stdout).unwrap());
    let again = ["run", "factor.toml", "--plan", "plan.json"];
    let and = |more: &[&'static str]| [&again[..], more].concat();
    place.fails(&and(&["--rank", "5"]), 2, &["--rank contradicts the plan"]);
    place.fails(
        &and(&["--memory", "33 MiB"]),
        4,
        &["is too little for rank 4"],
    );
    place.put("ratings.csv", &ratings(60, 30));
    place.fails(&again, 2, &["the plan does not fit", "200 with", "60 x 30"]);
    place.put("plan.json", "{}");
    place.fails(&again, 2, &["holds no plan"]);
}

#[test]
fn the_gram_matrix_takes_three_reads() {
    let place = Place::with(&ratings(3000, 200));
    let gram = ["--method", "gram", "--tolerance", "1e-7", "--json"];
    let json = |arguments: &[&str]| -> serde_json::Value {
        let output = place.run(&[arguments, &gram].concat());
        succeeded(&output);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let planned = json(&["plan", "factor.toml"]);
    assert_eq!(planned["plan"]["resolved"]["method"], "gram");
    let told = json(RUN);
    assert_eq!(told["passes"].as_u64(), Some(3));
    assert_eq!(told["certificate"]["status"], "converged");
    let first = place.hashes();
    json(&["run", "factor.toml", "-j", "1", "--fresh"]);
    assert_eq!(place.hashes(), first);
    place.put("ratings.csv", &wide());
    fs::remove_file(place.path("factors/manifest.json")).unwrap();
    place.fails(
        &["plan", "factor.toml", "--method", "gram"],
        2,
        &["a side of at most 4096; the shorter side of this one is 4200"],
    );
}

/// A matrix whose shorter side is 4,200.
fn wide() -> String {
    let mut text = String::from("userId,movieId,rating\n");
    for i in 0..4300 {
        text += &format!("{i},{},1\n", i % 4200);
    }
    text
}

#[test]
fn a_basis_that_memory_does_not_hold_is_cut_and_the_cut_can_be_repeated() {
    let place = Place::with(&ratings(3000, 200));
    let needs = |arguments: &[&str]| -> u64 {
        let told = place.run(&[&["plan", "factor.toml", "--json", "-j", "1"], arguments].concat());
        succeeded(&told);
        let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
        told["memory_needed"].as_u64().unwrap()
    };
    let memory = needs(&[]) - 1;
    let little = format!("{memory} B");
    let output = place.run(&["run", "factor.toml", "--memory", &little]);
    succeeded(&output);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("the basis was cut from"), "{told}");
    let first = place.hashes();
    let manifest = fs::read(place.path("factors/manifest.json")).unwrap();
    let told: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let (before, now) = (
        &told["plan"]["before_memory_cut"]["basis"],
        &told["plan"]["resolved"]["basis"],
    );
    assert!(now.as_u64() < before.as_u64(), "{before} {now}");
    fs::rename(place.path("factors/manifest.json"), place.path("cut.json")).unwrap();
    succeeded(&place.run(&["run", "factor.toml", "--plan", "cut.json"]));
    assert_eq!(place.hashes(), first);
}
