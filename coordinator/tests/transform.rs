//! `svdjob transform`: new rows with the factors of a run before.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use coordinator::output::npy::VectorReader;

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
    /// With factors of this input.
    fn with(input: &str) -> Self {
        let place = Self::without_factors(input);
        succeeded(&place.run(&["run", "factor.toml"]));
        place
    }

    fn without_factors(input: &str) -> Self {
        let place = Self {
            root: tempfile::tempdir().unwrap(),
        };
        place.put("factor.toml", JOB);
        place.put("ratings.csv", input);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_svdjob"))
            .args(arguments)
            .current_dir(self.root.path())
            .env_remove("RUST_LOG")
            .env_remove("SVDJOB_FARM_KEY")
            .env("SVDJOB_CACHE", self.path("cache"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn transform(&self, input: &str, flags: &[&str]) -> Output {
        let output = self.run(&[&["transform", "factors", input, "-o", "out"], flags].concat());
        succeeded(&output);
        output
    }

    fn fails(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let output = self.run(arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{told}");
        let flat = told.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words {
            assert!(flat.contains(word), "{word:?} is not in:\n{told}");
        }
        assert!(!self.path("out").exists(), "what fails leaves nothing");
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn vectors(&self, name: &str) -> Vec<Vec<f64>> {
        vectors(&self.path(name))
    }
}

fn succeeded(output: &Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn vectors(path: &Path) -> Vec<Vec<f64>> {
    let reader = VectorReader::open(path).unwrap();
    let of = reader.vectors();
    let mut all = vec![0.0; (of.count * of.width) as usize];
    reader.read(0, &mut all).unwrap();
    all.chunks_exact(of.width as usize)
        .map(<[f64]>::to_vec)
        .collect()
}

fn warned(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
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

/// Training rows are centred as they were, and a second run makes no blocks.
#[test]
fn transform_centres_and_scales_like_the_run() {
    for (users, films) in [(300, 60), (50, 200)] {
        let place = Place::without_factors(&ratings(users, films));
        for center in [
            "columns",
            "rows",
            "both",
            "observed-columns",
            "observed-both",
        ] {
            for scale in ["none", "columns"] {
                let flags = ["--center", center, "--scale", scale, "--precision", "f64"];
                let run = || place.run(&[&["run", "factor.toml"], &flags[..]].concat());
                succeeded(&run());
                let (u, s) = (
                    place.vectors("factors/U.npy"),
                    place.vectors("factors/S.npy"),
                );
                place.transform("ratings.csv", &[]);
                for (scores, u) in place.vectors("out/scores.npy").iter().zip(&u) {
                    for ((score, u), s) in scores.iter().zip(u).zip(&s) {
                        let wanted = u * s[0];
                        assert!(
                            (score - wanted).abs() < 1e-8,
                            "{center}, {scale}: {score}, {wanted}"
                        );
                    }
                }
                let manifest = String::from_utf8(place.bytes("factors/manifest.json")).unwrap();
                let means = if center.ends_with("rows") {
                    "row_means"
                } else {
                    "column_means"
                };
                assert!(manifest.contains(&format!("\"{means}.npy\"")), "{manifest}");
                let before = (place.bytes("factors/U.npy"), place.bytes("factors/Vt.npy"));
                let again = run();
                succeeded(&again);
                assert!(
                    warned(&again).contains("the centred matrix is in the cache"),
                    "{}",
                    warned(&again)
                );
                assert!(before == (place.bytes("factors/U.npy"), place.bytes("factors/Vt.npy")));
            }
        }
        let listed = place.run(&["cache", "ls"]);
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(
            listed.contains("(center = both, scale = columns)"),
            "{listed}"
        );
    }
}

/// A V - U S is nothing but rounding: V and U come from the same basis.
#[test]
fn transform_of_the_training_rows_gives_u_s() {
    let place = Place::with(&ratings(900, 60));
    let told = place.transform("ratings.csv", &[]);
    assert!(String::from_utf8_lossy(&told.stdout).contains("900 rows"));
    let (scores, u) = (
        place.vectors("out/scores.npy"),
        place.vectors("factors/U.npy"),
    );
    let sigma: Vec<f64> = place.vectors("factors/S.npy").concat();
    assert_eq!(scores.len(), 900);
    for (scores, u) in scores.iter().zip(&u) {
        for ((score, u), sigma) in scores.iter().zip(u).zip(&sigma) {
            assert!(
                (score - u * sigma).abs() < 1e-5 * sigma,
                "{score} {u} {sigma}"
            );
        }
    }
    assert_eq!(place.bytes("out/rows.csv"), place.bytes("factors/rows.csv"));

    place.transform("ratings.csv", &["--what", "u"]);
    for (again, u) in place.vectors("out/scores.npy").iter().zip(&u) {
        for (again, u) in again.iter().zip(u) {
            assert!((again - u).abs() < 1e-5, "{again} {u}");
        }
    }
}

/// The films are worked on as their transpose, so A V - U S is what the certificate says it is, of each triplet.
#[test]
fn transform_of_the_films_differs_from_u_s_by_the_residual() {
    let films = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/films/ratings.csv");
    let place = Place::with(&fs::read_to_string(films).unwrap());
    place.transform("ratings.csv", &[]);
    let (scores, u) = (
        place.vectors("out/scores.npy"),
        place.vectors("factors/U.npy"),
    );
    let sigma: Vec<f64> = place.vectors("factors/S.npy").concat();
    let certificate: serde_json::Value =
        serde_json::from_slice(&place.bytes("factors/certificate.json")).unwrap();
    for (i, sigma) in sigma.iter().enumerate() {
        let squares = scores
            .iter()
            .zip(&u)
            .map(|(a, u)| (a[i] - u[i] * sigma).powi(2));
        let found = squares.sum::<f64>().sqrt();
        let told = certificate["left_residual"][i].as_f64().unwrap();
        assert!(
            (found - told).abs() < 1e-5 * sigma + 1e-3 * told,
            "{i}: {found} {told}"
        );
    }
}

#[test]
fn transform_does_not_mind_the_order_of_lines_nor_other_rows() {
    let place = Place::with(&ratings(3000, 200));
    place.transform("ratings.csv", &["--cores", "2"]);
    let scores = place.bytes("out/scores.npy");
    let text = ratings(3000, 200);
    let mut lines: Vec<&str> = text.lines().collect();
    lines[1..].reverse();
    place.put("turned.csv", &lines.join("\n"));
    place.transform("turned.csv", &["--cores", "1"]);
    assert_eq!(scores, place.bytes("out/scores.npy"));

    // One user alone, and columns that make all labels of the file texts.
    let all = place.vectors("out/scores.npy");
    let of = |user: &'static str| text.lines().filter(move |l| l.starts_with(user));
    let mut one: Vec<&str> = of("userId").chain(of("17,")).collect();
    one.push("17,a film,5,0");
    place.put("one.csv", &one.join("\n"));
    let output = place.transform("one.csv", &[]);
    assert!(warned(&output).contains("1 of "), "{}", warned(&output));
    let rows = String::from_utf8(place.bytes("out/rows.csv")).unwrap();
    assert_eq!(rows, "index,label\n0,17\n");
    assert_eq!(place.vectors("out/scores.npy"), [all[16].clone()]);
}

#[test]
fn transform_projects_a_new_user_and_leaves_out_what_is_unknown() {
    let place = Place::with(&ratings(60, 30));
    let v = place.vectors("factors/Vt.npy");
    place.put(
        "new.tsv",
        "movieId\tuserId\trating\n300\tnew\t1\n10\tnew\t5\n77\tnew\t5\n20\tnew\t2.5\n99\tother\t1\n",
    );
    let output = place.transform("new.tsv", &["--json"]);
    let said = warned(&output);
    assert!(
        said.contains(
            "2 of 5 entries are left out: the model does not know their 2 columns (77, 99)"
        ),
        "{said}"
    );
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["unknown"]["entries"], 2);
    assert_eq!(told["rows"], 2);
    let scores = place.vectors("out/scores.npy");
    for (i, score) in scores[0].iter().enumerate() {
        let expected = 5.0 * v[0][i] + 2.5 * v[1][i] + v[29][i];
        assert!((score - expected).abs() < 1e-6, "{score} {expected}");
    }
    assert_eq!(scores[1], [0.0; 4]);
    let manifest: serde_json::Value =
        serde_json::from_slice(&place.bytes("out/manifest.json")).unwrap();
    assert_eq!(manifest["kind"], "scores");
    let hash = blake3::hash(&place.bytes("out/scores.npy")).to_hex();
    assert_eq!(manifest["files"][0]["blake3"], hash.as_str());

    // Fields by number, no header, no values; beside the input if nothing is said.
    fs::create_dir(place.path("in")).unwrap();
    place.put("in/likes.txt", "300 a\n10 a\n");
    let flags = ["--rows", "2", "--columns", "1", "--no-values"];
    succeeded(&place.run(&[&["transform", "factors", "in/likes.txt"], &flags[..]].concat()));
    let scores = place.vectors("in/scores/scores.npy");
    for (i, score) in scores[0].iter().enumerate() {
        assert!((score - v[0][i] - v[29][i]).abs() < 1e-6);
    }
}

#[test]
fn transform_finds_labels_that_had_to_be_quoted() {
    let mut text = String::from("user,film,stars\n");
    let films = [
        "\"Good, the Bad\"",
        "\"say \"\"x\"\"\"",
        "Über",
        "plain",
        "007",
    ];
    for user in 0..20 {
        for (at, film) in films.iter().enumerate() {
            text += &format!("u{user},{film},{}\n", (user * 7 + at * at * 3) % 5 + 1);
        }
    }
    let place = Place::without_factors(&text);
    let job = JOB
        .replace("userId", "user")
        .replace("movieId", "film")
        .replace("rating\"", "stars\"");
    place.put("factor.toml", &job);
    succeeded(&place.run(&["run", "factor.toml", "--precision", "f64"]));
    let labels = coordinator::output::labels::read(&place.path("factors/columns.csv")).unwrap();
    let v = place.vectors("factors/Vt.npy");
    for (film, label) in films
        .iter()
        .zip(["Good, the Bad", "say \"x\"", "Über", "plain", "007"])
    {
        place.put("new.csv", &format!("user,film,stars\nme,{film},1\n"));
        let output = place.transform("new.csv", &[]);
        assert!(!warned(&output).contains("left out"), "{}", warned(&output));
        let at = labels.iter().position(|known| known == label).unwrap();
        assert_eq!(place.vectors("out/scores.npy")[0], v[at], "{label}");
    }
    place.put("new.csv", "user,film,stars\nme,7,1\n");
    fs::remove_dir_all(place.path("out")).unwrap();
    let new = ["transform", "factors", "new.csv", "-o", "out"];
    place.fails(&new, 3, &["none of the 1 column labels", "7"]);
}

#[test]
fn transform_refuses_what_is_no_model_and_what_will_not_do() {
    let place = Place::with(&ratings(60, 30));
    let go = |model: &'static str| ["transform", model, "ratings.csv", "-o", "out"];
    place.fails(
        &go("nowhere"),
        3,
        &["nowhere holds no factors", "svdjob run"],
    );
    fs::create_dir(place.path("empty")).unwrap();
    place.fails(&go("empty"), 3, &["there is no manifest.json"]);
    place.fails(
        &["transform", "factors", "missing.csv", "-o", "out"],
        3,
        &["missing.csv"],
    );
    place.fails(
        &["transform", "factors", "ratings.csv", "-o", "factors"],
        2,
        &["holds factors", "--output"],
    );
    place.fails(
        &[&go("factors")[..], &["--columns", "filmId"]].concat(),
        3,
        &["filmId"],
    );
    place.fails(
        &[&go("factors")[..], &["--memory", "20 MiB"]].concat(),
        4,
        &["memory", "MiB"],
    );
    place.put("unknown.csv", "userId,movieId,rating\n1,1,1\n1,2,1\n");
    place.fails(
        &["transform", "factors", "unknown.csv", "-o", "out"],
        3,
        &["none of the 2 column labels", "the first are 1, 2"],
    );
    let manifest = String::from_utf8(place.bytes("factors/manifest.json")).unwrap();
    let centred = manifest.replace("\"center\": \"none\"", "\"center\": \"columns\"");
    assert_ne!(manifest, centred);
    place.put("factors/manifest.json", &centred);
    place.fails(&go("factors"), 3, &["there is no column_means.npy"]);
    place.put("factors/manifest.json", "{\"kind\": \"scores\"}");
    place.fails(&go("factors"), 3, &["not that of a factorization"]);
    place.put("factors/manifest.json", &manifest);
    let columns = String::from_utf8(place.bytes("factors/columns.csv")).unwrap();
    place.put(
        "factors/columns.csv",
        columns.trim_end().rsplit_once('\n').unwrap().0,
    );
    place.fails(&go("factors"), 3, &["29 labels", "30 columns"]);
    place.put("factors/columns.csv", &columns);
    let right = place.bytes("factors/Vt.npy");
    fs::write(place.path("factors/Vt.npy"), &right[..right.len() - 4]).unwrap();
    place.fails(&go("factors"), 3, &["Vt.npy", "cut short"]);
    fs::remove_file(place.path("factors/Vt.npy")).unwrap();
    place.fails(&go("factors"), 3, &["there is no Vt.npy"]);
}
