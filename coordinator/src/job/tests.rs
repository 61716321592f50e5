use std::path::Path;
use std::time::Duration;

use super::diagnostics::{Look, Source};
use super::file;
use super::overrides::Overrides;
use super::resolve::{LoadError, Loaded, load, resolve};
use super::resolved::{
    Accuracy, Center, Duplicates, FactorSpec, Field, Method, Otherwise, Precision, Scale,
    Tolerance, ToleranceKind, Wanted, Which,
};
use super::size::Memory;
use super::{DEFAULTS, machine};
use crate::failure::{ExitCode, Failure};

fn resolved_with(text: &str, flags: &Overrides) -> Result<Loaded, String> {
    let source = Source {
        name: "factor.toml".into(),
        text: text.into(),
    };
    resolve(source, Path::new("/data"), flags).map_err(|problems| problems.render(Look::PLAIN))
}

fn resolved(text: &str) -> Loaded {
    resolved_with(text, &Overrides::default()).unwrap_or_else(|text| panic!("{text}"))
}

fn complaint(text: &str) -> String {
    resolved_with(text, &Overrides::default()).expect_err("the job file is wrong")
}

/// A right [matrix] and something else below it.
fn complaint_of(text: &str) -> String {
    complaint(&format!("[matrix]\npath = \"r.csv\"\n{text}"))
}

#[test]
fn the_shortest_job_has_every_default() {
    let job = resolved("[matrix]\npath = \"ratings.csv\"\n").job;
    assert_eq!(job.matrix.path, Path::new("/data/ratings.csv"));
    assert_eq!(job.matrix.rows, Field::Number(1));
    assert_eq!(job.matrix.columns, Field::Number(2));
    assert_eq!(job.matrix.values, None);
    assert_eq!(job.matrix.duplicates, Duplicates::Error);
    let tolerance = Tolerance {
        value: 1e-2,
        kind: ToleranceKind::Residual,
        max_reads: 60,
    };
    assert_eq!(
        job.factor,
        FactorSpec {
            wanted: Wanted::Rank(50),
            oversample: 10,
            accuracy: Accuracy::Tolerance(tolerance),
            method: Method::Auto,
            block: None,
            basis: None,
            precision: Precision::F32,
            seed: 0,
            which: Which::Usv,
            center: Center::None,
            scale: Scale::None,
        }
    );
    assert_eq!(job.directory, Path::new("/data/factors"));
    assert_eq!(job.resources.memory, machine::memory() / 2);
    assert_eq!(job.resources.cores, machine::cores());
    assert_eq!(job.resources.cache_max, 64 << 30);
    assert!(job.resources.cache.is_absolute());
    assert!(job.farm.discover && !job.farm.embedded);
    assert!(job.farm.nodes.is_empty() && job.farm.ssh.is_empty());
    assert_eq!(job.farm.window, Duration::from_secs(3));
    assert_eq!(
        (job.farm.at_least, job.farm.otherwise),
        (1, Otherwise::Embedded)
    );
    assert_eq!((&job.farm.interface, &job.farm.key), (&None, &None));
    assert!(job.report.names.is_none() && job.report.nearest.is_empty());
}

#[test]
fn nothing_is_wrong_with_the_defaults_but_the_missing_path() {
    let mut problems = Vec::new();
    file::read(DEFAULTS, &mut problems);
    let titles: Vec<_> = problems.iter().map(|p| p.title.as_str()).collect();
    assert_eq!(titles, ["[matrix] has no `path`"]);
    // Keys that are comments there must be right as well, those that replace others in their stead.
    let replaced = |key: &str| -> &[&str] {
        match key {
            "energy" => &["rank"],
            "power_iterations" => &["tolerance", "tolerance_kind", "max_reads"],
            _ => &[],
        }
    };
    let key_of = |line: &str| Some(line.split_once(" = ")?.0.trim_end().to_owned());
    let mut seen = 0;
    for comment in DEFAULTS.lines().filter_map(|line| line.strip_prefix("# ")) {
        let Some(key) = key_of(comment).filter(|key| !key.contains(' ')) else {
            continue;
        };
        let all: String = DEFAULTS
            .lines()
            .map(|line| match key_of(line) {
                Some(other) if replaced(&key).contains(&other.as_str()) => "\n".into(),
                _ if line.strip_prefix("# ") == Some(comment) => format!("{comment}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        problems.clear();
        file::read(&all, &mut problems);
        problems.retain(|problem| problem.title != "[matrix] has no `path`");
        assert_eq!(problems, [], "{key}");
        seen += 1;
    }
    assert!(seen >= 10, "{seen} keys are comments");
}

#[test]
fn a_full_job_is_read() {
    let loaded = resolved(
        r#"
[matrix]
path = "in/../ratings.csv.gz"
format = "ratings"
rows = 2
columns = "item"
values = 4
duplicates = "mean"
[factor]
rank = 1_000
oversample = 0
power_iterations = 0
precision = "f64"
seed = 18446744073709551615
[output]
directory = "/out"
[resources]
memory = "1.5 GiB"
cores = 1
cache = "cache"
cache_max = 1048576
[farm]
discover = false
nodes = ["big1", "[fd77::13]:24741"]
ssh = ["alice@big2"]
window = "500 ms"
at_least = 2
otherwise = "fail"
interface = "eth1"
[report]
names = { path = "names.tsv", name = "title" }
nearest = ["a", "b"]
"#,
    );
    let job = loaded.job;
    assert_eq!(job.matrix.path, Path::new("/data/in/../ratings.csv.gz"));
    assert_eq!(job.matrix.columns, Field::Name("item".into()));
    assert_eq!(job.matrix.duplicates, Duplicates::Mean);
    assert_eq!(job.factor.rank(), Some(1000));
    assert_eq!(job.factor.accuracy, Accuracy::PowerIterations(0));
    assert_eq!(job.factor.seed, u64::MAX);
    assert_eq!(job.directory, Path::new("/out"));
    assert_eq!(job.resources.memory, 3 << 29);
    assert_eq!(job.resources.cache, Path::new("/data/cache"));
    let farm = &job.farm;
    assert!(!farm.discover);
    assert_eq!(
        farm.nodes,
        ["big1", "[fd77::13]:24741"].map(|text| text.parse().unwrap())
    );
    assert_eq!(farm.ssh, ["alice@big2"]);
    assert_eq!(
        (farm.window, farm.at_least),
        (Duration::from_millis(500), 2)
    );
    assert_eq!(farm.otherwise, Otherwise::Fail);
    assert_eq!(farm.interface.as_deref(), Some("eth1"));
    let object = serde_json::to_value(farm).unwrap();
    assert_eq!(object["nodes"][1], "[fd77::13]:24741");
    assert_eq!(
        (&object["window"], &object["otherwise"]),
        (&"500 ms".into(), &"fail".into())
    );
    let names = job.report.names.unwrap();
    assert_eq!(names.label, Field::Number(1));
    assert_eq!(names.name, Field::Name("title".into()));
}

#[test]
fn flags_stand_above_the_file() {
    let flags = Overrides {
        input: Some("/elsewhere/r.csv".into()),
        rank: Some(7),
        output: Some("/out".into()),
        memory: Some(Memory::Share(10.0)),
        nearest: vec!["x".into()],
        ..Overrides::default()
    };
    let text = "[matrix]\n[factor]\nrank = 9\nseed = 3\n[report]\nnearest = [\"y\"]\n";
    let job = resolved_with(text, &flags).unwrap().job;
    assert_eq!(job.matrix.path, Path::new("/elsewhere/r.csv"));
    assert_eq!((job.factor.rank(), job.factor.seed), (Some(7), 3));
    assert_eq!(job.directory, Path::new("/out"));
    assert_eq!(job.resources.memory, machine::memory() / 10);
    assert_eq!(job.report.nearest, ["x"]);
}

#[test]
fn flags_of_the_farm_stand_above_the_file() {
    let mut flags = Overrides::default();
    flags.farm.find.node = vec!["h2".parse().unwrap()];
    flags.farm.find.no_discover = true;
    flags.farm.find.farm_key = Some("/keys/farm.pem".into());
    flags.farm.at_least = Some(3);
    let text = "[matrix]\npath = \"r\"\n[farm]\nnodes = [\"h1\"]\nssh = [\"h3\"]\nat_least = 2\nwindow = \"9 s\"\n";
    let farm = resolved_with(text, &flags).unwrap().job.farm;
    assert_eq!(farm.nodes, ["h2".parse().unwrap()]);
    assert_eq!(farm.ssh, ["h3"]);
    assert!(!farm.discover);
    assert_eq!((farm.at_least, farm.window), (3, Duration::from_secs(9)));
    assert_eq!(farm.key.as_deref(), Some(Path::new("/keys/farm.pem")));
    let warned =
        resolved("[matrix]\npath = \"r\"\n[farm]\ndiscover = false\notherwise = \"fail\"\n");
    assert!(
        warned.warnings[0].contains("names none"),
        "{:?}",
        warned.warnings
    );
}

#[test]
fn problems_of_the_farm_are_told_where_they_stand() {
    assert_eq!(
        complaint_of("[farm]\nnodes = [\"big1\", \"alice@big2\", \"big3:x\"]\nwindow = 3\n"),
        "\
error: [farm] nodes cannot hold \"alice@big2\"
 --> factor.toml:4:18
  |
4 | nodes = [\"big1\", \"alice@big2\", \"big3:x\"]
  |                  ^^^^^^^^^^^^ a user belongs to SSH only: `ssh` starts nodes, `node` finds them

error: [farm] nodes cannot hold \"big3:x\"
 --> factor.toml:4:32
  |
4 | nodes = [\"big1\", \"alice@big2\", \"big3:x\"]
  |                                ^^^^^^^^ a port is a number from 1 to 65535

error: [farm] window has no unit
 --> factor.toml:5:10
  |
5 | window = 3
  |          ^ expected a time such as \"3 s\"
  |
  = help: for seconds write  window = \"3 s\"

factor.toml: 3 problems; nothing was run
"
    );
    let text = complaint_of(
        "[farm]\ndiscover = \"yes\"\nssh = [\"-oProxyCommand=x\", \"big1:22\", 7]\nwindow = \"soon\"\nat_least = 0\n\
         otherwise = \"local\"\ninterface = \"\"\nhosts = []\n[report]\nnodes = \"x\"\n",
    );
    for words in [
        "expected true or false, found text in quotes",
        "expected a host as `ssh` takes it",
        "a port stands like this:  \"ssh://big1:22\"",
        "[farm] ssh has an item of the wrong type",
        "[farm] window is not a time",
        "[farm] at_least is out of range",
        "that is \"embedded\" here",
        "[farm] interface is empty",
        "did you mean `nodes`?",
        "`nodes` belongs below [farm]",
        "factor.toml: 10 problems; nothing was run",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(complaint_of("[frm]\n").contains("did you mean [farm]?"));
}

#[test]
fn what_looks_wrong_but_is_allowed_is_a_warning() {
    let loaded =
        resolved("[matrix]\npath = \"r\"\n[resources]\nmemory = \"9999 TiB\"\ncores = 60000\n");
    assert_eq!(loaded.warnings.len(), 2, "{:?}", loaded.warnings);
}

#[test]
fn an_unknown_key_is_told_with_the_nearest() {
    assert_eq!(
        complaint_of("[factor]\nrnak = 5\n"),
        "\
error: unknown key `rnak` in [factor]
 --> factor.toml:4:1
  |
4 | rnak = 5
  | ^^^^ did you mean `rank`?

factor.toml: 1 problem; nothing was run
"
    );
}

#[test]
fn a_key_of_another_section_is_sent_there() {
    let text = complaint_of("rank = 5\n[factor]\ndirectory = \"x\"\nzebra = 1\nn_components = 3\n");
    for words in [
        "`rank` belongs below [factor]",
        "`directory` belongs below [output]",
        "help: [factor] has `rank`, `energy`,",
        "did you mean `rank`?",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let text = complaint("rank = 5\n[matrix]\npath = \"r\"\n[facter]\n");
    assert!(text.contains("`rank` stands outside any section"), "{text}");
    assert!(text.contains("did you mean [factor]?"), "{text}");
}

#[test]
fn a_wrong_type_is_told_with_what_was_expected_and_found() {
    assert_eq!(
        complaint_of("[factor]\nrank = \"50\"\n[output]\ndirectory = 7\n"),
        "\
error: [factor] rank has the wrong type
 --> factor.toml:4:8
  |
4 | rank = \"50\"
  |        ^^^^ expected a whole number, 1 or more, found text in quotes
  |
  = help: numbers stand without quotes:  rank = 50

error: [output] directory has the wrong type
 --> factor.toml:6:13
  |
6 | directory = 7
  |             ^ expected a path in quotes, found a whole number

factor.toml: 2 problems; nothing was run
"
    );
}

#[test]
fn impossible_values_are_told_all_at_once() {
    let text = complaint_of(
        "duplicates = \"first\"\nrows = 0\n[factor]\nrank = 0\noversample = -1\npower_iterations = 99999999999\n\
         precision = \"f16\"\nseed = 1.5\n[resources]\nmemory = \"lots\"\ncores = 0\ncache_max = \"-1 GiB\"\n\
         [report]\nnearest = \"x\"\n",
    );
    for words in [
        "factor.toml:3:14",
        "expected \"error\", \"sum\", \"mean\" or \"last\"",
        "factor.toml:4:8",
        "fields are counted from 1",
        "factor.toml:6:8",
        "[factor] rank is out of range",
        "expected a whole number, 1 or more",
        "factor.toml:7:14",
        "expected a whole number, 0 or more",
        "expected at most 4294967295",
        "[factor] precision cannot be \"f16\"",
        "expected \"f32\" or \"f64\"",
        "expected a whole number, 0 or more, found a number with a fraction",
        "expected a number with a unit, such as \"4 GiB\" or \"512 MB\"",
        "expected a whole number from 1 to 65536",
        "a size cannot be negative",
        "expected a list such as [\"Heat (1995)\"], found text in quotes",
        "factor.toml: 11 problems; nothing was run",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_budget_without_its_unit_is_noticed() {
    let text = complaint_of("[resources]\nmemory = 4\n");
    assert!(
        text.contains("help: for gigabytes write  memory = \"4 GiB\""),
        "{text}"
    );
}

/// A job with these lines in its [factor].
fn factor_of(lines: &str) -> FactorSpec {
    factor_with(lines, &Overrides::default())
}

fn factor_with(lines: &str, flags: &Overrides) -> FactorSpec {
    let text = format!("[matrix]\npath = \"r\"\n[factor]\n{lines}");
    match resolved_with(&text, flags) {
        Ok(loaded) => loaded.job.factor,
        Err(told) => panic!("{told}"),
    }
}

fn until(value: f64, kind: ToleranceKind, max_reads: u32) -> Accuracy {
    Accuracy::Tolerance(Tolerance {
        value,
        kind,
        max_reads,
    })
}

#[test]
fn what_is_wanted_and_how_accurately_is_read() {
    let factor = factor_of(
        "energy = 0.9\ntolerance = 1e-3\ntolerance_kind = \"sigma\"\nmax_reads = 4\n\
         method = \"krylov\"\nblock = 16\nbasis = 32\n",
    );
    assert_eq!((factor.wanted, factor.rank()), (Wanted::Energy(0.9), None));
    assert_eq!(factor.accuracy, until(1e-3, ToleranceKind::Sigma, 4));
    assert_eq!(factor.method, Method::Krylov);
    assert_eq!((factor.block, factor.basis), (Some(16), Some(32)));
    // All of it, as a whole number.
    assert_eq!(factor_of("energy = 1\n").wanted, Wanted::Energy(1.0));
    assert_eq!(factor_of("rank = 7\n").wanted, Wanted::Rank(7));
    for (word, method) in Method::WORDS {
        assert_eq!(factor_of(&format!("method = {word:?}\n")).method, method);
    }
    for (word, kind) in ToleranceKind::WORDS {
        let factor = factor_of(&format!("tolerance_kind = {word:?}\n"));
        assert_eq!(factor.accuracy, until(1e-2, kind, 60));
    }
    let factor = factor_of("power_iterations = 0\nmethod = \"auto\"\n");
    assert_eq!(factor.accuracy, Accuracy::PowerIterations(0));
}

#[test]
fn the_manifest_has_the_keys_of_the_job_file() {
    let factor = factor_of("tolerance_kind = \"sigma\"\n");
    let object = serde_json::to_value(factor).unwrap();
    assert_eq!(object["rank"], 50);
    assert_eq!(object["tolerance"]["value"], 1e-2);
    assert_eq!(object["tolerance"]["kind"], "sigma");
    assert_eq!(object["method"], "auto");
    assert_eq!(
        serde_json::from_value::<FactorSpec>(object).unwrap(),
        factor
    );
    let factor = factor_of("energy = 0.5\npower_iterations = 3\nblock = 4\n");
    let object = serde_json::to_value(factor).unwrap();
    assert_eq!(
        (&object["energy"], &object["power_iterations"]),
        (&0.5.into(), &3.into())
    );
    assert_eq!(
        (&object["block"], &object["basis"]),
        (&4.into(), &serde_json::Value::Null)
    );
    assert_eq!(
        serde_json::from_value::<FactorSpec>(object).unwrap(),
        factor
    );
}

#[test]
fn wishes_out_of_range_are_told_where_they_stand() {
    let text = complaint_of(
        "[factor]\nenergy = 90\ntolerance = 0\ntolerance_kind = \"residuals\"\nmax_reads = 3\n\
         method = \"kriylov\"\nblock = 0\nbasis = 1\n",
    );
    for words in [
        "factor.toml:4:10",
        "[factor] energy is out of range",
        "expected a number more than 0 and at most 1, such as 0.9",
        "for 90 % write  energy = 0.9\n",
        "factor.toml:5:13",
        "expected a number more than 0 and less than 1, such as 1e-2",
        "factor.toml:6:18",
        "expected \"residual\" or \"sigma\"",
        "did you mean \"residual\"?",
        "factor.toml:7:13",
        "expected a whole number, 4 or more",
        "factor.toml:8:10",
        "expected \"auto\", \"krylov\", \"exact\" or \"gram\"",
        "did you mean \"krylov\"?",
        "factor.toml:9:9",
        "expected a whole number, 1 or more",
        "factor.toml:10:9",
        "expected a whole number, 2 or more",
        "factor.toml: 7 problems; nothing was run",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    for value in ["1", "1.0", "-1e-2", "nan", "inf", "1e-400", "0x1"] {
        let text = complaint_of(&format!("[factor]\ntolerance = {value}\n"));
        assert!(
            text.contains("[factor] tolerance is out of range"),
            "{text}"
        );
        assert!(text.contains("factor.toml:4:13"), "{text}");
    }
    for value in ["0.0", "1.000001", "-0.5", "nan"] {
        let text = complaint_of(&format!("[factor]\nenergy = {value}\n"));
        assert!(text.contains("[factor] energy is out of range"), "{text}");
    }
    let text = complaint_of("[factor]\ntolerance = \"1e-3\"\nmax_reads = 1.5\nmethod = 3\n");
    for words in [
        "numbers stand without quotes:  tolerance = 1e-3",
        "expected a whole number, 4 or more, found a number with a fraction",
        "or \"gram\", found a whole number",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // A share in the place of a number.
    assert_eq!(
        complaint_of("[factor]\nrank = 0.95\n"),
        "\
error: [factor] rank has the wrong type
 --> factor.toml:4:8
  |
4 | rank = 0.95
  |        ^^^^ expected a whole number, 1 or more, found a number with a fraction
  |
  = help: for as many triplets as explain that share of the sum of squares write  energy = 0.95

factor.toml: 1 problem; nothing was run
"
    );
}

#[test]
fn wishes_that_exclude_each_other_are_told_with_both_places() {
    assert_eq!(
        complaint_of("[factor]\nrank = 50\nenergy = 0.9\n"),
        "\
error: [factor] rank and energy exclude each other
 --> factor.toml:5:1
  |
4 | rank = 50
  | ---- so many triplets
5 | energy = 0.9
  | ^^^^^^ as many triplets as explain this share
  |
  = help: delete `rank` or `energy`: one of the two says how many triplets there will be

factor.toml: 1 problem; nothing was run
"
    );
    assert_eq!(
        complaint_of("[factor]\ntolerance = 1e-3\npower_iterations = 4\n"),
        "\
error: [factor] power_iterations and tolerance exclude each other
 --> factor.toml:5:1
  |
4 | tolerance = 1e-3
  | --------- as many passes as it takes
5 | power_iterations = 4
  | ^^^^^^^^^^^^^^^^ this many passes, however good the triplets
  |
  = help: delete `power_iterations` to work until a tolerance is reached, or `tolerance` to do just so many iterations

factor.toml: 1 problem; nothing was run
"
    );
    // Each of them alone, whatever else is wrong with it.
    for line in [
        "tolerance = 2",
        "tolerance_kind = \"sigma\"",
        "max_reads = 60",
        "method = \"gram\"",
    ] {
        let text = complaint_of(&format!("[factor]\npower_iterations = 4\n{line}\n"));
        let key = line.split(' ').next().unwrap();
        assert!(
            text.contains(&format!("power_iterations and {key} exclude each other")),
            "{text}"
        );
        assert!(text.contains(&format!("or `{key}` to do")), "{text}");
        assert!(text.contains("\n5 | "), "{text}");
    }
    let text = complaint_of(
        "[factor]\npower_iterations = 4\ntolerance = 1e-3\nmax_reads = 9\nmethod = \"exact\"\n",
    );
    for words in [
        "[factor] power_iterations and tolerance, max_reads and method exclude each other",
        "or `tolerance`, `max_reads` and `method` to do just so many",
        "a method that counts no power iterations",
        "factor.toml: 1 problem",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_basis_holds_two_blocks() {
    assert_eq!(
        complaint_of("[factor]\nblock = 32\nbasis = 63\n"),
        "\
error: [factor] basis is smaller than two blocks
 --> factor.toml:5:9
  |
4 | block = 32
  |         -- columns of one block
5 | basis = 63
  |         ^^ expected at least 64

factor.toml: 1 problem; nothing was run
"
    );
    let factor = factor_of("block = 32\nbasis = 64\n");
    assert_eq!((factor.block, factor.basis), (Some(32), Some(64)));
    let told = |lines: &str, flags: &Overrides| {
        resolved_with(&format!("[matrix]\npath = \"r\"\n[factor]\n{lines}"), flags)
            .expect_err("the basis is too small")
    };
    let flags = Overrides {
        block: Some(40),
        ..Overrides::default()
    };
    let text = told("block = 9\nbasis = 64\n", &flags);
    assert!(text.contains("factor.toml:5:9"), "{text}");
    assert!(
        text.contains("expected at least 80, because of --block 40"),
        "{text}"
    );
    let flags = Overrides {
        basis: Some(33),
        ..Overrides::default()
    };
    let text = told("block = 17\n", &flags);
    assert!(text.contains("factor.toml:4:9"), "{text}");
    assert!(
        text.contains("expected at most 16, because of --basis 33"),
        "{text}"
    );
    // Two flags stand in no file.
    let mut flags = Overrides {
        block: Some(u32::MAX),
        basis: Some(u32::MAX),
        ..Overrides::default()
    };
    let failure = flags.check().unwrap_err();
    assert_eq!(failure.code, ExitCode::Job);
    flags.block = Some(u32::MAX / 2);
    assert_eq!(flags.check(), Ok(()));
}

#[test]
fn a_tolerance_below_what_f32_holds_takes_f64() {
    assert_eq!(factor_of("tolerance = 1e-6\n").precision, Precision::F32);
    assert_eq!(factor_of("tolerance = 9e-7\n").precision, Precision::F64);
    assert_eq!(
        factor_of("power_iterations = 9\n").precision,
        Precision::F32
    );
    let flags = Overrides {
        tolerance: Some(1e-8),
        ..Overrides::default()
    };
    assert_eq!(factor_with("", &flags).precision, Precision::F64);
    // Whoever wants f32 gets it, and is told.
    let given = "[matrix]\npath = \"r\"\n[factor]\ntolerance = 1e-8\nprecision = \"f32\"\n";
    let loaded = resolved(given);
    assert_eq!(loaded.job.factor.precision, Precision::F32);
    assert_eq!(
        loaded.warnings,
        [
            "factors in f32 are rounded, which alone leaves residuals of about 1e-6: a tolerance below needs \
             precision = \"f64\""
        ]
    );
    assert!(resolved(&given.replace("f32", "f64")).warnings.is_empty());
}

#[test]
fn block_and_basis_of_another_method_are_warned_of() {
    let warned = |lines: &str| {
        let text = format!("[matrix]\npath = \"r\"\n[factor]\n{lines}");
        resolved(&text).warnings.join("\n")
    };
    for (lines, words) in [
        ("power_iterations = 2\nblock = 8\n", "with power iterations"),
        ("method = \"gram\"\nbasis = 80\n", "with method = \"gram\""),
        (
            "method = \"exact\"\nbasis = 80\n",
            "with method = \"exact\"",
        ),
    ] {
        assert!(warned(lines).contains(words), "{lines}: {}", warned(lines));
    }
    assert_eq!(warned("method = \"krylov\"\nblock = 8\n"), "");
    assert_eq!(warned("basis = 80\n"), "");
    assert_eq!(warned("power_iterations = 2\n"), "");
}

#[test]
fn a_flag_replaces_what_the_file_says_against_it() {
    let none = Overrides::default;
    let iterations = Overrides {
        power_iterations: Some(4),
        ..none()
    };
    let lines = "tolerance = 1e-3\ntolerance_kind = \"sigma\"\nmax_reads = 9\nmethod = \"gram\"\n";
    let factor = factor_with(lines, &iterations);
    assert_eq!(factor.accuracy, Accuracy::PowerIterations(4));
    assert_eq!(factor.method, Method::Auto);

    for (flags, accuracy, method) in [
        (
            Overrides {
                tolerance: Some(1e-4),
                ..none()
            },
            until(1e-4, ToleranceKind::Residual, 60),
            Method::Auto,
        ),
        (
            Overrides {
                tolerance_kind: Some(ToleranceKind::Sigma),
                ..none()
            },
            until(1e-2, ToleranceKind::Sigma, 60),
            Method::Auto,
        ),
        (
            Overrides {
                max_reads: Some(5),
                ..none()
            },
            until(1e-2, ToleranceKind::Residual, 5),
            Method::Auto,
        ),
        (
            Overrides {
                method: Some(Method::Krylov),
                ..none()
            },
            until(1e-2, ToleranceKind::Residual, 60),
            Method::Krylov,
        ),
        // That says nothing against them.
        (
            Overrides {
                method: Some(Method::Auto),
                ..none()
            },
            Accuracy::PowerIterations(7),
            Method::Auto,
        ),
    ] {
        let factor = factor_with("power_iterations = 7\n", &flags);
        assert_eq!((factor.accuracy, factor.method), (accuracy, method));
    }
    // One of three: the others stay as the file has them.
    let flags = Overrides {
        tolerance: Some(1e-5),
        ..none()
    };
    let factor = factor_with(
        "tolerance = 1e-3\nmax_reads = 9\nmethod = \"krylov\"\n",
        &flags,
    );
    assert_eq!(factor.accuracy, until(1e-5, ToleranceKind::Residual, 9));
    assert_eq!(factor.method, Method::Krylov);

    let energy = Overrides {
        energy: Some(0.5),
        ..none()
    };
    assert_eq!(
        factor_with("rank = 9\n", &energy).wanted,
        Wanted::Energy(0.5)
    );
    let rank = Overrides {
        rank: Some(9),
        ..none()
    };
    assert_eq!(factor_with("energy = 0.5\n", &rank).wanted, Wanted::Rank(9));
    // What the file says against itself is wrong whatever the flags are.
    let text = "[matrix]\npath = \"r\"\n[factor]\ntolerance = 1e-3\npower_iterations = 4\n";
    assert!(resolved_with(text, &iterations).is_err());
}

#[test]
fn words_of_other_programs_lead_to_the_right_key() {
    for (line, key) in [
        ("tol = 1e-3", "tolerance"),
        ("eps = 1e-3", "tolerance"),
        ("tolerence = 1e-3", "tolerance"),
        ("k = 3", "rank"),
        ("nv = 3", "rank"),
        ("n_components = 50", "rank"),
        ("n_components = 0.95", "energy"),
        ("k = 0.95", "energy"),
        ("variance = 0.9", "energy"),
        ("explained_variance_ratio = 0.9", "energy"),
        ("n_iter = 4", "power_iterations"),
        ("iterated_power = 4", "power_iterations"),
        ("n_power_iter = 4", "power_iterations"),
        ("iterations = 4", "power_iterations"),
        ("maxiter = 9", "max_reads"),
        ("max_iter = 9", "max_reads"),
        ("maxit = 9", "max_reads"),
        ("n_oversamples = 9", "oversample"),
        ("svd_solver = \"arpack\"", "method"),
        ("algorithm = \"randomized\"", "method"),
        ("ncv = 9", "basis"),
        ("work = 9", "basis"),
        ("block_size = 9", "block"),
        ("random_state = 9", "seed"),
    ] {
        let text = complaint_of(&format!("[factor]\n{line}\n"));
        assert!(
            text.contains(&format!("^ did you mean `{key}`?")),
            "{line}: {text}"
        );
    }
    for (word, hint) in [
        ("randomized", "say `power_iterations = 4`"),
        ("arpack", "that is \"krylov\" here"),
        ("full", "that is \"exact\" here"),
        ("covariance_eigh", "that is \"gram\" here"),
    ] {
        let text = complaint_of(&format!("[factor]\nmethod = {word:?}\n"));
        assert!(text.contains(hint), "{text}");
    }
    let text = complaint_of("[factor]\nn_components = 0.95\n");
    assert!(
        text.contains("help: energy = 0.95  gives as many triplets as explain that share"),
        "{text}"
    );
}

#[test]
fn which_factors_are_written_is_read() {
    for (word, which) in Which::WORDS {
        assert_eq!(factor_of(&format!("which = {word:?}\n")).which, which);
    }
    let flags = Overrides {
        which: Some(Which::S),
        ..Overrides::default()
    };
    assert_eq!(factor_with("which = \"sv\"\n", &flags).which, Which::S);
    assert_eq!(
        complaint_of("[factor]\nwhich = \"vt\"\n"),
        "\
error: [factor] which cannot be \"vt\"
 --> factor.toml:4:9
  |
4 | which = \"vt\"
  |         ^^^^ expected \"usv\", \"sv\" or \"s\"
  |
  = help: V with its singular values is \"sv\"

factor.toml: 1 problem; nothing was run
"
    );
    for (line, words) in [
        ("which = \"USV\"", "did you mean \"usv\"?"),
        ("which = \"LM\"", "the largest singular values are found"),
        ("which = \"SM\"", "only the largest"),
        ("which = true", "or \"s\", found true or false"),
        ("return_singular_vectors = true", "did you mean `which`?"),
    ] {
        let text = complaint_of(&format!("[factor]\n{line}\n"));
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn centring_is_read() {
    for (word, center) in Center::WORDS {
        let factor = factor_of(&format!("center = {word:?}\n"));
        assert_eq!(factor.center, center);
        // The manifest says the same word.
        assert_eq!(serde_json::to_value(factor).unwrap()["center"], word);
    }
    let flags = Overrides {
        center: Some(Center::None),
        ..Overrides::default()
    };
    let factor = factor_with("center = \"rows\"\n", &flags);
    assert_eq!(factor.center, Center::None);
    let all = "expected \"none\", \"columns\", \"rows\", \"both\", \"observed-columns\", \"observed-rows\" or \
               \"observed-both\"";
    for (line, words) in [
        ("center = \"median\"", all),
        ("center = \"column\"", "did you mean \"columns\"?"),
        (
            "center = \"observed_rows\"",
            "did you mean \"observed-rows\"?",
        ),
        ("center = \"observed\"", "say the means of what"),
        ("center = true", "help: that is  center = \"columns\"  here"),
        ("center = false", "help: that is  center = \"none\"  here"),
        ("with_mean = true", "did you mean `center`?"),
        ("centre = \"rows\"", "did you mean `center`?"),
    ] {
        let text = complaint_of(&format!("[factor]\n{line}\n"));
        assert!(text.contains(words), "{text}");
        assert!(text.contains("factor.toml:4:"), "{text}");
    }
}

#[test]
fn scaling_is_read() {
    for (word, scale) in Scale::WORDS {
        assert_eq!(factor_of(&format!("scale = {word:?}\n")).scale, scale);
    }
    let flags = Overrides {
        scale: Some(Scale::Columns),
        ..Overrides::default()
    };
    let factor = factor_with("scale = \"none\"\n", &flags);
    assert_eq!(factor.scale, Scale::Columns);
    for (line, words) in [
        ("scale = \"max\"", "expected \"none\" or \"columns\""),
        ("scale = \"rows\"", "only columns can be scaled"),
        ("scale = \"std\"", "that is \"columns\" here"),
        ("scale = true", "help: that is  scale = \"columns\"  here"),
        ("with_std = true", "did you mean `scale`?"),
        ("\"scale.\" = true", "did you mean `scale`?"),
    ] {
        let text = complaint_of(&format!("[factor]\n{line}\n"));
        assert!(text.contains(words), "{text}");
        assert!(text.contains("factor.toml:4:"), "{text}");
    }
}

#[test]
fn a_warm_start_is_a_path_as_all_others_are() {
    let text = "[matrix]\npath = \"r\"\n[factor]\nwarm_start = \"old/Vt.npy\"\n";
    let loaded = resolved(text);
    assert_eq!(
        loaded.job.warm_start.as_deref(),
        Some(Path::new("/data/old/Vt.npy"))
    );
    assert!(!loaded.start_from_flag);
    let flags = Overrides {
        warm_start: Some("/other".into()),
        ..Overrides::default()
    };
    let loaded = resolved_with(text, &flags).unwrap();
    assert_eq!(loaded.job.warm_start.as_deref(), Some(Path::new("/other")));
    assert!(loaded.start_from_flag);
    assert_eq!(resolved("[matrix]\npath = \"r\"\n").job.warm_start, None);
    for (line, words) in [
        ("warm_start = \"\"", "[factor] warm_start is empty"),
        (
            "warm_start = true",
            "expected a path in quotes, found true or false",
        ),
        ("v0 = \"x\"", "did you mean `warm_start`?"),
        ("warmstart = \"x\"", "did you mean `warm_start`?"),
        ("init = \"x\"", "did you mean `warm_start`?"),
    ] {
        let text = complaint_of(&format!("[factor]\n{line}\n"));
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn scripts_are_told_both_places() {
    let source = Source {
        name: "factor.toml".into(),
        text: "[matrix]\npath = \"r\"\n[factor]\nrank = 1\n  energy = 1\n".into(),
    };
    let problems = resolve(source, Path::new("/data"), &Overrides::default()).unwrap_err();
    let told = &problems.to_json()["problems"][0];
    assert_eq!((&told["line"], &told["column"]), (&5.into(), &3.into()));
    let also = &told["also"][0];
    assert_eq!((&also["line"], &also["column"]), (&4.into(), &1.into()));
    assert_eq!(also["label"], "so many triplets");
}

#[test]
fn a_missing_matrix_or_path_is_told() {
    assert_eq!(
        complaint("[factor]\nrank = 5\n"),
        "\
error: the section [matrix] is missing
 --> factor.toml:1:1
  |
1 | [factor]
  | ^ expected [matrix] with the path of the data somewhere in this file
  |
  = help: the shortest job is:  [matrix]  and below it  path = \"ratings.csv\"

factor.toml: 1 problem; nothing was run
"
    );
    assert!(complaint("").contains("the section [matrix] is missing"));
    assert_eq!(
        complaint("\n[matrix]\nrows = 1\n"),
        "\
error: [matrix] has no `path`
 --> factor.toml:2:1
  |
2 | [matrix]
  | ^^^^^^^^ expected a line such as  path = \"ratings.csv\"  in this section

factor.toml: 1 problem; nothing was run
"
    );
    // One fault, one complaint.
    let text = complaint("[matrx]\npath = \"r\"\n");
    assert!(text.ends_with("1 problem; nothing was run\n"), "{text}");
    let text = complaint("[matrix]\npath = 3\n");
    assert!(text.ends_with("1 problem; nothing was run\n"), "{text}");
    let text = complaint("[matrix]\npath = [\"a\", \"b\"]\n");
    assert!(
        text.contains("this version reads one file per job"),
        "{text}"
    );
}

#[test]
fn syntax_errors_stand_among_the_others() {
    let text = complaint("[matrix]\npath = \"r.csv\"\n[factor]\nrank = \nsede = 3\n");
    assert_eq!(
        text,
        "\
error: this is not valid TOML
 --> factor.toml:4:8
  |
4 | rank = 
  |        ^ expected a value after `=`

error: unknown key `sede` in [factor]
 --> factor.toml:5:1
  |
5 | sede = 3
  | ^^^^ did you mean `seed`?

factor.toml: 2 problems; nothing was run
"
    );
    for text in [
        "[matrix\n",
        "path",
        "[matrix]\npath = \"r\n",
        "[matrix]\n[matrix]\n",
        "a = [1,\n",
        "\"\"\"",
    ] {
        let text = complaint(text);
        assert!(text.contains("this is not valid TOML"), "{text}");
    }
}

#[test]
fn two_roles_of_one_field_are_a_slip() {
    let text = complaint_of("rows = 2\n");
    assert!(
        text.contains("rows and columns are the same field"),
        "{text}"
    );
    assert!(text.contains("`columns` is left out"), "{text}");
    let text = complaint_of("rows = \"a\"\ncolumns = \"b\"\nvalues = \"a\"\n");
    assert!(text.contains("both are the field \"a\""), "{text}");
}

#[test]
fn strange_files_do_no_harm() {
    let deep = format!("a = {}", "[".repeat(10_000));
    for text in [
        "\u{feff}",
        "\r\n",
        "a\0b = 1",
        "matrix = 3",
        "[[matrix]]",
        "[matrix.path]",
        "é = \"ü\"",
        &deep,
    ] {
        assert!(complaint(text).contains("nothing was run"));
    }
    let text = complaint("[matrix]\npath = \"r\"\n[factor]\n\"\\u001b[31mred\" = 1\n");
    assert!(!text.contains('\u{1b}'), "{text:?}");
}

fn unreadable(path: &Path) -> Failure {
    match load(path, &Overrides::default()) {
        Err(LoadError::Unreadable(failure)) => {
            assert_eq!(failure.code, ExitCode::Job);
            failure
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_that_are_no_job_files_are_told() {
    let root = tempfile::tempdir().unwrap();
    let failure = unreadable(&root.path().join("factor.toml"));
    assert!(
        failure.message.starts_with("there is no job file"),
        "{failure}"
    );
    assert!(failure.help.unwrap().contains("svdjob init"));
    std::fs::write(root.path().join("factors.toml"), "").unwrap();
    let failure = unreadable(&root.path().join("factor.toml"));
    assert!(failure.help.unwrap().contains("factors.toml?"));
    let failure = unreadable(&root.path().join("none/factor.toml"));
    assert!(failure.help.unwrap().contains("no directory"));
    assert!(unreadable(root.path()).message.contains("is a directory"));

    let path = root.path().join("latin.toml");
    std::fs::write(&path, b"[matrix]\npath = \"caf\xe9.csv\"\n").unwrap();
    let Err(LoadError::Problems(problems)) = load(&path, &Overrides::default()) else {
        panic!("Latin-1 is not UTF-8");
    };
    let text = problems.render(Look::PLAIN);
    assert!(text.contains("latin.toml:2:12"), "{text}");
    assert!(text.contains("byte 0xe9 is not UTF-8"), "{text}");
}

#[test]
fn files_that_the_job_names_are_looked_at() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("factor.toml");
    let data = root.path().join("ratings.csv");
    let look = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let loaded = load(&path, &Overrides::default()).unwrap();
        match loaded.look() {
            Ok(()) => (ExitCode::Bug, String::new()),
            Err(LoadError::Problems(problems)) => (problems.code, problems.render(Look::PLAIN)),
            Err(LoadError::Unreadable(failure)) => (failure.code, failure.message),
        }
    };
    std::fs::write(&data, "userId,movieId,rating\n1,2,3\n").unwrap();
    let (code, text) = look("[matrix]\npath = \"rating.csv\"\n");
    assert_eq!(code, ExitCode::Data);
    assert!(text.contains("factor.toml:2:8"), "{text}");
    assert!(text.contains("did you mean \"ratings.csv\"?"), "{text}");
    let (code, text) = look("[matrix]\npath = \"ratings.csv\"\nrows = \"userid\"\nvalues = 4\n");
    assert_eq!(code, ExitCode::Job);
    assert!(text.contains("factor.toml:3:8"), "{text}");
    assert!(text.contains("did you mean \"userId\"?"), "{text}");
    assert!(text.contains("its first line has 3 fields"), "{text}");
    let (code, text) =
        look("[matrix]\npath = \"./ratings.csv\"\n[report]\nnames = { path = \"films.csv\" }\n");
    assert_eq!(code, ExitCode::Data);
    assert!(text.contains("the file of names cannot be read"), "{text}");
    assert_eq!(look("[matrix]\npath = \"./ratings.csv\"\n").1, "");
    // The factors to begin with: a file, or a directory with one.
    let begin = "[matrix]\npath = \"ratings.csv\"\n[factor]\nwarm_start = \"before\"\n";
    std::fs::create_dir(root.path().join("befores")).unwrap();
    let (code, text) = look(begin);
    assert_eq!(code, ExitCode::Data);
    assert!(text.contains("factor.toml:4:14"), "{text}");
    assert!(text.contains("what to begin with cannot be read"), "{text}");
    assert!(text.contains("did you mean \"befores\"?"), "{text}");
    let before = root.path().join("before");
    std::fs::create_dir(&before).unwrap();
    std::fs::write(before.join("Vt.npx"), "").unwrap();
    let (code, text) = look(begin);
    assert_eq!(code, ExitCode::Data);
    assert!(text.contains("did you mean \"Vt.npx\"?"), "{text}");
    std::fs::write(before.join("Vt.npy"), "").unwrap();
    assert_eq!(look(begin).1, "");
    assert_eq!(look(&begin.replace("before", "before/Vt.npy")).1, "");
}
