//! Stories of a farm with real processes: `svdnode` on the hosts of a LAN, `svdjob` on its workstation.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, OnceLock},
    time::Duration,
};

use crate::lan::{Host, Lan, Process, Shape, Skip, program, programs_folder, sshd_installed};

/// For what takes a second or two when all is well.
pub const SOON: Duration = Duration::from_secs(20);
/// For a whole run on a busy machine, with leases to run out and everything done again.
pub const LONG: Duration = Duration::from_secs(150);

/// A matrix and how it is factored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Job {
    rows: u32,
    columns: u32,
    entries: u32,
    rank: u32,
    until: Until,
}

/// When the work is done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Until {
    PowerIterations(u32),
    /// All residuals are below 10^-this. Blocks and basis are narrow, so that there are many reads, restarts among them.
    Tolerance(u32),
    /// As `Tolerance(2)`, of columns that are centred and scaled.
    Centred,
    /// As `Tolerance(4)`, from V of a coarser run.
    Warm,
    /// By the eigenvectors of A^T A.
    Gram,
}

/// Where a warm start finds the coarser run, and its job file.
const COARSE: (&str, &str) = ("coarse", "coarse.toml");

impl Job {
    /// Over in no time: for stories about who finds whom.
    pub const SMALL: Self = Self {
        rows: 40_000,
        columns: 800,
        entries: 200_000,
        rank: 10,
        until: Until::PowerIterations(4),
    };
    /// 13 blocks and some seconds of work, so that it can be disturbed in each of its phases.
    pub const MIDDLE: Self = Self {
        rows: 200_000,
        columns: 6_000,
        entries: 3_000_000,
        rank: 40,
        until: Until::PowerIterations(30),
    };
    /// The same for longer than anybody stays away, when cables are long.
    pub const LASTING: Self = Self {
        until: Until::PowerIterations(160),
        ..Self::MIDDLE
    };
    /// The same until a tolerance: a plan that grows.
    pub const CERTIFIED: Self = Self {
        until: Until::Tolerance(4),
        ..Self::MIDDLE
    };

    pub const CENTRED: Self = Self {
        until: Until::Centred,
        ..Self::MIDDLE
    };
    pub const WARM: Self = Self {
        until: Until::Warm,
        ..Self::MIDDLE
    };
    /// Fewer columns: A^T A is to be worth it.
    pub const GRAM: Self = Self {
        columns: 1_500,
        until: Until::Gram,
        ..Self::MIDDLE
    };

    /// The matrix as text, made by the first that asks and kept for later runs of the tests.
    fn input(self) -> PathBuf {
        static MAKING: Mutex<()> = Mutex::new(());
        let folder = programs_folder().join("../tmp/farm");
        fs::create_dir_all(&folder).expect("a folder for matrices");
        let folder = folder.canonicalize().expect("it was just made");
        let (rows, columns, entries) = (self.rows, self.columns, self.entries);
        let path = folder.join(format!("{rows}x{columns}-{entries}.csv"));
        let _one_at_a_time = MAKING.lock();
        if !path.exists() {
            // It appears under its name when it is whole.
            let done = svdjob()
                .args(["synth", "custom"])
                .args(["--rows", &rows.to_string()])
                .args(["--columns", &columns.to_string()])
                .args(["--entries", &entries.to_string()])
                .arg("--output")
                .arg(&path)
                .output()
                .expect("svdjob can be started");
            let told = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{told}");
        }
        path
    }

    fn text(self) -> String {
        let narrow = |tolerance: &str| {
            format!(
                "tolerance = {tolerance}\nmax_reads = 500\nmethod = \"krylov\"\nblock = 8\nbasis = 88"
            )
        };
        let how = match self.until {
            Until::PowerIterations(count) => format!("power_iterations = {count}"),
            Until::Tolerance(digits) => narrow(&format!("1e-{digits}")),
            Until::Centred => narrow("1e-2") + "\ncenter = \"columns\"\nscale = \"columns\"",
            Until::Warm => narrow("1e-4") + &format!("\nwarm_start = {:?}", COARSE.0),
            Until::Gram => "method = \"gram\"\ntolerance = 1e-4".to_owned(),
        };
        self.text_of(&how, "factors")
    }

    /// The job file of the coarser run that this one begins with.
    fn coarse(self) -> Option<String> {
        (self.until == Until::Warm).then(|| self.text_of("tolerance = 0.3", COARSE.0))
    }

    fn text_of(self, how: &str, directory: &str) -> String {
        format!(
            "[matrix]\npath = {:?}\nrows = 1\ncolumns = 2\nvalues = 3\n\
             [factor]\nrank = {}\noversample = 10\n{how}\n\
             [output]\ndirectory = {directory:?}\n\
             [resources]\nmemory = \"1 GiB\"\ncache = \"cache\"\n",
            self.input().display().to_string(),
            self.rank,
        )
    }

    /// Of the factors that one process alone makes, undisturbed.
    pub fn hashes(self) -> Hashes {
        static KNOWN: OnceLock<Mutex<HashMap<Job, Hashes>>> = OnceLock::new();
        let mut known = KNOWN
            .get_or_init(Mutex::default)
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        if let Some(hashes) = known.get(&self) {
            return *hashes;
        }
        let name = format!("alone-{}-{:?}", std::process::id(), self.until);
        let folder = self.input().with_file_name(name);
        fs::create_dir_all(&folder).expect("a folder");
        let coarse = self.coarse().map(|text| (COARSE.1, text));
        for (name, text) in coarse.into_iter().chain([("factor.toml", self.text())]) {
            fs::write(folder.join(name), text).expect("a job file");
            let done = svdjob()
                .args(["run", name, "--quiet"])
                .current_dir(&folder)
                .env("XDG_CONFIG_HOME", &folder)
                .output()
                .expect("svdjob can be started");
            let told = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{told}");
        }
        let hashes = hashes(&folder.join("factors"));
        let _ = fs::remove_dir_all(&folder);
        known.insert(self, hashes);
        hashes
    }
}

/// Outside of any LAN, where it must have no key and so sends nothing.
fn svdjob() -> Command {
    let mut command = Command::new(program("svdjob"));
    command
        .env_remove("RUST_LOG")
        .env_remove("SVDJOB_CACHE")
        .env_remove("SVDJOB_FARM_KEY")
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null());
    command
}

/// Of `U.npy`, `S.npy`, `Vt.npy`.
pub type Hashes = [blake3::Hash; 3];

fn hashes(folder: &Path) -> Hashes {
    ["U.npy", "S.npy", "Vt.npy"].map(|name| {
        let path = folder.join(name);
        let bytes = fs::read(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        blake3::hash(&bytes)
    })
}

/// Where a run is, by what it says when it gets there.
#[derive(Clone, Copy, Debug)]
pub enum Stage {
    /// Blocks go to the nodes.
    Ship,
    Power(u32),
    /// TSQR of the n-sided basis.
    Basis(u32),
    Range,
    Projection,
    Lift,
    /// A read of a plan that works until a tolerance.
    Pass(u32),
    /// What is new of it is made orthonormal.
    New(u32),
    Restart,
    Verification,
    Polish,
    /// The eigenvectors of A^T A, after its sum.
    Gram,
}

impl Stage {
    fn words(self) -> String {
        match self {
            Self::Ship => "sketch".into(),
            Self::Power(number) => format!("power pass {number} of"),
            Self::Basis(number) => format!("basis {number} of"),
            Self::Range => "range pass".into(),
            Self::Projection => "projection pass".into(),
            Self::Lift => "lift pass".into(),
            Self::Pass(number) => format!("pass {number}, worst"),
            Self::New(number) => format!("basis {number}, worst"),
            Self::Restart => "restart after pass".into(),
            Self::Verification => "verification pass".into(),
            Self::Polish => "polish".into(),
            Self::Gram => "eigenvectors of".into(),
        }
    }
}

/// Waits until the run gets there.
pub fn reaches(run: &Process, stage: Stage) {
    run.wait_for(&stage.words(), LONG);
}

/// A LAN whose hosts all have the key of one farm.
pub struct Farm {
    pub lan: Lan,
    job: Job,
}

impl Farm {
    /// # Errors
    /// When there can be no LAN here.
    pub fn of(hosts: usize, job: Job) -> Result<Self, Skip> {
        let shape = Shape {
            hosts,
            far: 0,
            ipv6: true,
        };
        let farm = Self::without_keys(shape, job)?;
        farm.make_key(farm.lan.ws());
        for host in farm.lan.nodes() {
            farm.give_key(host);
        }
        Ok(farm)
    }

    /// # Errors
    /// When there can be no LAN here.
    pub fn without_keys(shape: Shape, job: Job) -> Result<Self, Skip> {
        // Before the LAN is up: what is computed here is not to disturb what is timed there.
        job.hashes();
        let farm = Self {
            lan: Lan::with(shape)?,
            job,
        };
        farm.put_job(farm.lan.ws(), job);
        Ok(farm)
    }

    /// A LAN with the SSH server on these hosts, where only the workstation has a key of the farm.
    ///
    /// # Errors
    /// When there can be no LAN here, or no SSH in it.
    pub fn over_ssh(shape: Shape, job: Job, servers: &[&str]) -> Result<Self, Skip> {
        sshd_installed()?;
        let farm = Self::without_keys(shape, job)?;
        farm.make_key(farm.lan.ws());
        for host in servers {
            farm.lan.sshd(host, true)?;
        }
        Ok(farm)
    }

    /// `svdjob run` with nodes that it starts over SSH, on these hosts and no others.
    pub fn run_over_ssh(&self, hosts: &[&str], flags: &[&str]) -> Process {
        let hosts = hosts.iter().flat_map(|host| ["--ssh", host]);
        let all: Vec<&str> = hosts
            .chain(["--no-discover"])
            .chain(flags.iter().copied())
            .collect();
        self.run(&all)
    }

    /// `svdjob farm init`.
    pub fn make_key(&self, host: &Host) {
        let init = self.svdjob(host, &["farm", "init"]);
        init.succeeds(SOON);
        assert!(key_of(host).exists(), "no key{}", init.told());
    }

    /// Brings the workstation's key to a host, as `scp` would.
    pub fn give_key(&self, host: &Host) {
        let to = key_of(host);
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder for the key");
        fs::copy(key_of(self.lan.ws()), &to).expect("the key is there");
    }

    pub fn put_job(&self, host: &Host, job: Job) {
        fs::write(host.home().join("factor.toml"), job.text()).expect("a job file");
        if let Some(text) = job.coarse() {
            fs::write(host.home().join(COARSE.1), text).expect("a job file");
            let run = self.svdjob(host, &["run", COARSE.1, "--embedded", "--quiet"]);
            run.succeeds(LONG);
        }
    }

    /// Adds to the workstation's job file.
    pub fn add_to_job(&self, text: &str) {
        let path = self.lan.ws().home().join("factor.toml");
        let job = fs::read_to_string(&path).expect("a job file");
        fs::write(path, job + text).expect("a longer job file");
    }

    /// `svdnode` of one core, ready.
    pub fn node(&self, name: &str) -> Process {
        self.node_with(name, &["--cores", "1"])
    }

    /// `svdnode` of one core each, ready.
    pub fn nodes<const N: usize>(&self, names: [&str; N]) -> [Process; N] {
        names.map(|name| self.node(name))
    }

    /// `svdnode` with these flags, ready.
    pub fn node_with(&self, name: &str, flags: &[&str]) -> Process {
        let host = self.lan.host(name);
        let node = host
            .program(program("svdnode"))
            .args(["-v", "--cache", "node-cache"])
            .args(flags)
            .spawn();
        let line = node.wait_for("svdnode listening on", SOON);
        assert!(node.stdout().contains(&line), "stdout is for this line");
        node
    }

    /// `svdnode` that may take so much memory, though it believes to have plenty.
    pub fn poor_node(&self, name: &str, bytes: u64) -> Process {
        let node = self
            .lan
            .host(name)
            .program(program("svdnode"))
            .args(["-v", "--cores", "1", "--memory", "8 GiB"])
            .memory_limit(bytes)
            .spawn();
        node.wait_for("svdnode listening on", SOON);
        node
    }

    /// `svdjob` there, with these arguments.
    pub fn svdjob(&self, host: &Host, arguments: &[&str]) -> Process {
        host.program(program("svdjob")).args(arguments).spawn()
    }

    /// `svdjob run` on the workstation, which must find a farm.
    pub fn run(&self, flags: &[&str]) -> Process {
        let arguments = [&["run", "factor.toml", "-v", "--otherwise", "fail"], flags].concat();
        self.svdjob(self.lan.ws(), &arguments)
    }

    /// The run ends with the same bytes as undisturbed in one process.
    pub fn ends_well(&self, run: &Process) {
        run.succeeds(LONG);
        let factors = self.lan.ws().home().join("factors");
        assert_eq!(
            hashes(&factors),
            self.job.hashes(),
            "other bits{}",
            run.told()
        );
        fs::remove_dir_all(factors).expect("the next run begins without");
    }
}

/// Where `svdjob farm init` leaves it.
pub fn key_of(host: &Host) -> PathBuf {
    host.home().join(".config/svdjob/farm.pem")
}

/// The process has ended with one of these words on its stderr, whatever their case.
pub fn told_one_of(process: &Process, words: &[&str]) {
    let told = process.stderr().to_lowercase();
    assert!(
        words.iter().any(|word| told.contains(word)),
        "none of {words:?}{}",
        process.told()
    );
}

/// Sent and received at `eth0` since the host is up.
pub fn bytes_of(host: &Host) -> u64 {
    let counters = host.counters("eth0");
    counters.sent_bytes + counters.received_bytes
}

/// The largest file below.
pub fn largest_file(folder: &Path) -> PathBuf {
    let mut folders = vec![folder.to_owned()];
    let mut found: Option<(u64, PathBuf)> = None;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            let len = entry.metadata().expect("facts").len();
            if path.is_dir() {
                folders.push(path);
            } else if found.as_ref().is_none_or(|(most, _)| len > *most) {
                found = Some((len, path));
            }
        }
    }
    found.expect("a file").1
}
