//! Several hosts on one machine, without root: a LAN of Linux namespaces for tests with real processes.
//!
//! ```text
//!   h1 .11   h2 .12  ...  ws .100         f1 .11   f2 .12 ...
//!    |        |            |               |        |
//!   -+--------+------------+-- 10.77.0.0   +--------+------- 10.77.1.0
//!                          |               |
//!                          +--- rt .254 ---+
//! ```
//!
//! Each host has namespaces of its own for network, mounts, processes, names and IPC: its own interfaces, `/tmp`, `/run`,
//! host name, home and configuration. None of them reaches the machine's own network, and LANs do not reach each other,
//! so many can be up at once with the same addresses. When the test's process ends, however it ends, the kernel ends every
//! process and every interface of the LAN.
//!
//! What it needs of the machine: Linux that lets users make namespaces, veth and bridge, `/proc` not covered by a container,
//! and the program `ip` of iproute2. Without them `up` says what is missing. Delay, loss, rates and firewalls are made by a
//! wire in user space (`wire.rs`), for not every kernel has netem and not every machine has nft.

pub mod agent;
mod process;
mod sshd;
mod system;
mod wire;
mod words;

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use self::words::{Answer, Birth, Order, Program, What};
pub use self::{
    process::{Exit, Process},
    sshd::{USER, installed as sshd_installed},
    words::Wire,
};

/// Why there can be no LAN on this machine.
#[derive(Clone, Debug)]
pub struct Skip(pub String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Skip {
    /// Says it even where the output of tests that pass is kept back: a test that was not run must not look like one
    /// that passed.
    pub fn tell(&self) {
        let name = thread::current().name().unwrap_or("a test").to_owned();
        // When nobody can hear it, nothing is to be done.
        let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {self}");
    }
}

/// The LAN, or says aloud why the test is not run and returns from it.
#[macro_export]
macro_rules! lan_or_skip {
    ($up:expr) => {
        match $up {
            Ok(lan) => lan,
            Err(why) => {
                why.tell();
                return;
            }
        }
    };
}

/// More at once would only take the processors from each other.
const AT_ONCE: usize = 3;
/// For what takes milliseconds when all is well.
const PATIENCE: Duration = Duration::from_secs(20);

/// A bridge's word for a port that is open.
const FORWARDING: &str = "3";

/// What the LAN is to have besides hosts `h1`, `h2`, ... and the workstation `ws`.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub hosts: usize,
    /// Hosts `f1`, `f2`, ... behind a router `rt`; no router when 0.
    pub far: usize,
    pub ipv6: bool,
}

/// Hosts, a workstation and a switch.
pub struct Lan {
    wiring: Arc<Wiring>,
    hosts: Vec<Host>,
    /// Whose plug is pulled, and between whom and the switch there is a wire.
    cut: Mutex<HashSet<String>>,
    wired: Mutex<HashSet<String>>,
    switch: Child,
    folder: PathBuf,
    _lock: File,
    _turn: Turn,
}

/// What hosts and processes share with their LAN.
struct Wiring {
    orders: Mutex<Option<ChildStdin>>,
    heard: Mutex<Heard>,
    changed: Condvar,
    next: AtomicU64,
}

#[derive(Default)]
struct Heard {
    done: HashMap<u64, Result<(u32, String), String>>,
    /// How it went with those that are ready, and why others never will be.
    ready: HashMap<String, Result<(), String>>,
    exits: HashMap<(String, u32), Exit>,
    /// The switch's agent says nothing more.
    over: bool,
}

impl Wiring {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        lock(&self.heard)
    }

    /// Waits until `look` finds something; `None` at the deadline or when nothing more can come.
    fn wait<T>(
        &self,
        deadline: Instant,
        mut look: impl FnMut(&mut Heard) -> Option<T>,
    ) -> Option<T> {
        let mut heard = self.heard();
        loop {
            if let Some(found) = look(&mut heard) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if heard.over || left.is_zero() {
                return None;
            }
            heard = match self.changed.wait_timeout(heard, left) {
                Ok((heard, _)) => heard,
                Err(broken) => broken.into_inner().0,
            };
        }
    }

    fn order(&self, host: &str, what: What) -> Result<u64, String> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let order = Order {
            id,
            host: host.to_owned(),
            what,
        };
        let mut line = serde_json::to_string(&order).map_err(|why| why.to_string())?;
        line.push('\n');
        let mut orders = lock(&self.orders);
        let orders = orders.as_mut().ok_or("the LAN is down")?;
        orders
            .write_all(line.as_bytes())
            .map_err(|why| format!("the switch's agent is gone: {why}"))?;
        Ok(id)
    }

    fn answer(&self, id: u64) -> Result<(u32, String), String> {
        self.wait(Instant::now() + PATIENCE, |heard| heard.done.remove(&id))
            .unwrap_or_else(|| Err("no answer from the agent".into()))
    }

    fn ask(&self, host: &str, what: What) -> Result<(u32, String), String> {
        self.order(host, what).and_then(|id| self.answer(id))
    }

    fn listen(&self, words: impl BufRead) {
        for line in words.lines().map_while(Result::ok) {
            let answer: Answer = match serde_json::from_str(&line) {
                Ok(answer) => answer,
                Err(why) => panic!("{why} in an agent's {line:?}"),
            };
            let mut heard = self.heard();
            match answer {
                Answer::Done { id, pid, text } => {
                    heard.done.insert(id, Ok((pid, text)));
                }
                Answer::Failed { id, why } => {
                    heard.done.insert(id, Err(why));
                }
                Answer::Ready { host } => {
                    heard.ready.insert(host, Ok(()));
                }
                Answer::Refused { host, why } => {
                    heard.ready.insert(host, Err(why));
                }
                Answer::Exited {
                    host,
                    pid,
                    code,
                    signal,
                } => {
                    heard.exits.insert((host, pid), Exit { code, signal });
                }
            }
            drop(heard);
            self.changed.notify_all();
        }
        self.heard().over = true;
        self.changed.notify_all();
    }
}

impl Lan {
    /// Hosts `h1`, `h2`, ... and `ws` on one switch.
    ///
    /// # Errors
    /// When the kernel or a missing program forbids it.
    pub fn up(hosts: usize) -> Result<Self, Skip> {
        Self::with(Shape {
            hosts,
            far: 0,
            ipv6: true,
        })
    }

    /// # Errors
    /// When the kernel or a missing program forbids it.
    pub fn with(shape: Shape) -> Result<Self, Skip> {
        assert!(shape.hosts < 90 && shape.far < 90, "more than addresses");
        let turn = Turn::take();
        let mut places: Vec<(String, Ipv4Addr)> = (1..=shape.hosts)
            .map(|i| (format!("h{i}"), Ipv4Addr::new(10, 77, 0, 10 + i as u8)))
            .collect();
        places.push(("ws".into(), Ipv4Addr::new(10, 77, 0, 100)));
        if shape.far > 0 {
            places.push(("rt".into(), Ipv4Addr::new(10, 77, 0, 254)));
        }
        places.extend(
            (1..=shape.far).map(|i| (format!("f{i}"), Ipv4Addr::new(10, 77, 1, 10 + i as u8))),
        );
        need_ip()?;
        let (folder, lock) = folder();
        let (switch, wiring) = start_switch(&folder)?;
        let hosts = places
            .iter()
            .map(|(name, address)| Host {
                name: name.clone(),
                address: *address,
                folder: folder.join(name),
                wiring: Arc::clone(&wiring),
                started: Arc::new(AtomicU64::new(0)),
            })
            .collect();
        // From here on dropping it takes everything down.
        let lan = Self {
            wiring,
            hosts,
            cut: Mutex::default(),
            wired: Mutex::default(),
            switch,
            folder,
            _lock: lock,
            _turn: turn,
        };
        lan.furnish(shape)?;
        Ok(lan)
    }

    fn furnish(&self, shape: Shape) -> Result<(), Skip> {
        let wiring = &self.wiring;
        let ready = |name: &str| {
            wiring
                .wait(Instant::now() + PATIENCE, |heard| heard.ready.remove(name))
                .unwrap_or_else(|| Err("its agent did not begin".into()))
                .map_err(|why| Skip(format!("no LAN of namespaces here: {why}")))
        };
        let made = |result: Result<(u32, String), String>| {
            result.map_err(|why| Skip(format!("no LAN of namespaces here: {why}")))
        };
        ready("")?;
        let table: String = self.hosts.iter().fold(
            "127.0.0.1 localhost\n::1 localhost\n".into(),
            |mut table, host| {
                let _ = writeln!(table, "{} {}", host.address, host.name);
                table
            },
        );
        let mut born = Vec::new();
        for (number, host) in self.hosts.iter().enumerate() {
            host.furnish(&table, number);
            let birth = Birth {
                name: host.name.clone(),
                folder: host.folder.clone(),
                keep: vec![crate::root(), programs_folder()],
                ipv6: shape.ipv6,
            };
            let asked = wiring.order("", What::Host(birth));
            born.push(made(asked.map(|id| (0, id.to_string())))?.1);
        }
        // A switch that watched who wants which multicast would send words of its own.
        let bridge = |name: &str| {
            format!("link add {name} type bridge mcast_snooping 0\nlink set {name} up\n")
        };
        let mut batch = bridge("lan0");
        if shape.far > 0 {
            batch += &bridge("lan1");
        }
        for (host, id) in self.hosts.iter().zip(born) {
            let id = id.parse().expect("an id written above");
            let (pid, _) = made(wiring.answer(id))?;
            ready(&host.name)?;
            let _ = writeln!(
                batch,
                "link add {0} type veth peer name eth0 netns {pid}\nlink set {0} master {1} up",
                host.name,
                host.switch()
            );
            if host.name == "rt" {
                let _ = writeln!(
                    batch,
                    "link add rt1 type veth peer name eth1 netns {pid}\nlink set rt1 master lan1 up"
                );
            }
        }
        made(wiring.ask("", What::Ip(batch)))?;
        for host in &self.hosts {
            let [.., net, last] = host.address.octets();
            let mut batch = format!(
                "link set lo up\naddress add {}/24 broadcast + dev eth0\n",
                host.address
            );
            if shape.ipv6 && Path::new("/proc/sys/net/ipv6").exists() {
                let _ = writeln!(
                    batch,
                    "address add fd77:0:0:{net}::{last}/64 dev eth0 nodad"
                );
            }
            batch += "link set eth0 up\n";
            if host.name == "rt" {
                batch += "address add 10.77.1.254/24 broadcast + dev eth1\nlink set eth1 up\n";
            } else if shape.far > 0 {
                let _ = writeln!(batch, "route add default via 10.77.{net}.254");
            }
            made(wiring.ask(&host.name, What::Ip(batch)))?;
        }
        if shape.far > 0 {
            let forward = self.host("rt").write("/proc/sys/net/ipv4/ip_forward", "1");
            made(forward.map(|()| (0, String::new())))?;
            self.settle("rt1");
        }
        for host in &self.hosts {
            self.settle(&host.name);
        }
        Ok(())
    }

    /// The one with this name.
    ///
    /// # Panics
    /// When there is none.
    pub fn host(&self, name: &str) -> &Host {
        self.hosts
            .iter()
            .find(|host| host.name == name)
            .unwrap_or_else(|| panic!("this LAN has no host {name}"))
    }

    /// The workstation.
    pub fn ws(&self) -> &Host {
        self.host("ws")
    }

    /// `h1`, `h2`, ...
    pub fn nodes(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(|host| host.name.starts_with('h'))
    }

    fn switch_ip(&self, batch: String) {
        if let Err(why) = self.wiring.ask("", What::Ip(batch)) {
            panic!("{why}");
        }
    }

    /// Pulls a host's plug in silence: its interface stays up, no frame passes.
    pub fn cut(&self, name: &str) {
        lock(&self.cut).insert(name.to_owned());
        self.switch_ip(format!("link set {} nomaster\n", self.port(name)));
    }

    /// Puts it back.
    pub fn heal(&self, name: &str) {
        lock(&self.cut).remove(name);
        let (port, switch) = (self.port(name), self.host(name).switch());
        self.switch_ip(format!("link set {port} master {switch}\n"));
        self.settle(&port);
    }

    /// Waits until the switch passes frames on at this port: it hears of the carrier a little later.
    fn settle(&self, port: &str) {
        let state = PathBuf::from(format!("/sys/class/net/{port}/brport/state"));
        let deadline = Instant::now() + PATIENCE;
        // Where it cannot be read, there is nothing to wait for.
        while let Ok((_, state)) = self.wiring.ask("", What::Read(state.clone()))
            && state.trim() != FORWARDING
        {
            assert!(Instant::now() < deadline, "the switch keeps {port} shut");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// No frame passes between these two; all others hear both. Hosts of a second pair lose those of the first, too.
    pub fn cut_pair(&self, one: &str, other: &str) {
        self.isolate([one, other], "on");
    }

    /// Undoes that.
    pub fn heal_pair(&self, one: &str, other: &str) {
        self.isolate([one, other], "off");
    }

    fn isolate(&self, names: [&str; 2], how: &str) {
        for name in names {
            let port = self.port(name);
            self.switch_ip(format!(
                "link set {port} type bridge_slave isolated {how}\n"
            ));
        }
    }

    /// From now on this host's cable is like this, in both directions. Connections live on.
    pub fn wire(&self, name: &str, like: Wire) {
        let host = self.host(name);
        let (outside, socket) = (format!("{name}.w"), format!("{name}.s"));
        if lock(&self.wired).insert(name.to_owned()) {
            let master = if lock(&self.cut).contains(name) {
                String::new()
            } else {
                format!("master {} ", host.switch())
            };
            self.switch_ip(format!(
                "link add {socket} type veth peer name {outside}\nlink set {name} nomaster\n\
                 link set {outside} up\nlink set {socket} {master}up\n"
            ));
            // Loss and rates are to act on what a real cable carries.
            for (host, interface) in [(name, "eth0"), ("", &socket)] {
                let interface = interface.to_owned();
                if let Err(why) = self.wiring.ask(host, What::PlainFrames { interface }) {
                    panic!("plain frames of {host}: {why}");
                }
            }
        }
        let order = What::Wire {
            inside: name.to_owned(),
            outside,
            like,
        };
        if let Err(why) = self.wiring.ask("", order) {
            panic!("the wire of {name}: {why}");
        }
        if !lock(&self.cut).contains(name) {
            self.settle(&self.port(name));
        }
    }

    /// What stands in the switch for a host.
    fn port(&self, name: &str) -> String {
        if lock(&self.wired).contains(name) {
            format!("{name}.s")
        } else {
            self.host(name).name.clone()
        }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        lock(&self.wiring.orders).take();
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.switch.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.switch.kill();
            }
            thread::sleep(Duration::from_millis(1));
        }
        if thread::panicking() {
            self.tell_logs();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Lan {
    /// The ends of what all programs said.
    fn tell_logs(&self) {
        for host in &self.hosts {
            let mut files: Vec<PathBuf> = fs::read_dir(host.folder.join("out"))
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .collect();
            files.sort();
            for file in files {
                let text = fs::read(&file).unwrap_or_default();
                if !text.is_empty() {
                    let name = file.file_name().unwrap_or_default().to_string_lossy();
                    eprintln!("--- {} {name}\n{}", host.name, process::tail(&text));
                }
            }
        }
    }
}

/// One of the machines.
#[derive(Clone)]
pub struct Host {
    name: String,
    address: Ipv4Addr,
    folder: PathBuf,
    wiring: Arc<Wiring>,
    started: Arc<AtomicU64>,
}

/// What an interface has counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    pub received_bytes: u64,
    pub received_packets: u64,
    pub sent_bytes: u64,
    pub sent_packets: u64,
}

impl Host {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its user's home, seen under the same path by the test and by the host.
    pub fn home(&self) -> PathBuf {
        self.folder.join("home")
    }

    fn switch(&self) -> &'static str {
        if self.name.starts_with('f') {
            "lan1"
        } else {
            "lan0"
        }
    }

    /// Before it begins: its folders and what it is to find in /etc.
    fn furnish(&self, table: &str, number: usize) {
        let put = |path: &str, text: &str| {
            let path = self.folder.join(path);
            let made = fs::create_dir_all(path.parent().expect("in the folder"))
                .and_then(|()| fs::write(&path, text));
            made.unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        };
        put("etc/hosts", table);
        put("etc/hostname", &format!("{}\n", self.name));
        put("etc/machine-id", &format!("{:032x}\n", number + 1));
        put("etc/resolv.conf", "");
        let (users, groups) = sshd::accounts(&self.home());
        put("etc/passwd", &users);
        put("etc/group", &groups);
        for folder in ["home", "out", "run"] {
            let path = self.folder.join(folder);
            fs::create_dir_all(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        }
    }

    /// A program to be started here, by its path or looked up in the PATH.
    pub fn program(&self, name: impl Into<PathBuf>) -> Start<'_> {
        let home = self.home();
        let path = |folder: &str| home.join(folder).display().to_string();
        let environment = [
            ("PATH", std::env::var("PATH").unwrap_or_default()),
            ("HOME", home.display().to_string()),
            ("XDG_CONFIG_HOME", path(".config")),
            ("XDG_CACHE_HOME", path(".cache")),
            ("XDG_DATA_HOME", path(".local/share")),
            ("XDG_STATE_HOME", path(".local/state")),
            (
                "XDG_RUNTIME_DIR",
                self.folder.join("run").display().to_string(),
            ),
            ("TMPDIR", "/tmp".into()),
            ("USER", "tester".into()),
            ("LOGNAME", "tester".into()),
            ("HOSTNAME", self.name.clone()),
            ("LANG", "C.UTF-8".into()),
            ("NO_COLOR", "1".into()),
        ];
        Start {
            host: self,
            program: Program {
                arguments: vec![name.into().display().to_string()],
                environment: environment
                    .map(|(name, value)| (name.to_owned(), value))
                    .to_vec(),
                folder: home,
                stdout: PathBuf::new(),
                stderr: PathBuf::new(),
            },
        }
    }

    /// The text of a file as this host sees it, such as those under /proc.
    ///
    /// # Errors
    /// As reading does.
    pub fn read(&self, path: impl Into<PathBuf>) -> Result<String, String> {
        let (_, text) = self.wiring.ask(&self.name, What::Read(path.into()))?;
        Ok(text)
    }

    /// Writes a setting of the host's kernel.
    ///
    /// # Errors
    /// As writing does.
    pub fn write(&self, path: impl Into<PathBuf>, text: &str) -> Result<(), String> {
        let (path, text) = (path.into(), text.to_owned());
        self.wiring.ask(&self.name, What::Write { path, text })?;
        Ok(())
    }

    /// How many processes whose names begin so are alive here.
    pub fn running(&self, name: &str) -> usize {
        let (_, list) = self
            .program("sh")
            .args(["-c", "cat /proc/[0-9]*/comm"])
            .run(PATIENCE);
        let list = list.stdout();
        list.lines().filter(|line| line.starts_with(name)).count()
    }

    /// A disk of this size, gone with the host. The test itself does not see what is on it.
    pub fn small_disk(&self, path: impl Into<PathBuf>, bytes: u64) -> PathBuf {
        let path = path.into();
        let order = What::Tmpfs {
            path: path.clone(),
            bytes,
        };
        if let Err(why) = self.wiring.ask(&self.name, order) {
            panic!("a small disk on {}: {why}", self.name);
        }
        path
    }

    /// Of `eth0` or `lo`.
    pub fn counters(&self, interface: &str) -> Counters {
        let text = self
            .read("/proc/net/dev")
            .unwrap_or_else(|why| panic!("counters of {}: {why}", self.name));
        let numbers: Vec<u64> = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))
            .unwrap_or_else(|| panic!("{} has no interface {interface}:\n{text}", self.name))
            .split_whitespace()
            .map(|word| word.parse().expect("a number"))
            .collect();
        Counters {
            received_bytes: numbers[0],
            received_packets: numbers[1],
            sent_bytes: numbers[8],
            sent_packets: numbers[9],
        }
    }
}

/// A program about to be started.
pub struct Start<'a> {
    host: &'a Host,
    program: Program,
}

impl Start<'_> {
    #[must_use]
    pub fn args<S: AsRef<str>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        let arguments = arguments.into_iter();
        self.program
            .arguments
            .extend(arguments.map(|argument| argument.as_ref().to_owned()));
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<Path>) -> Self {
        let value = value.as_ref().display().to_string();
        self.program.environment.push((name.to_owned(), value));
        self
    }

    /// Runs in this folder instead of the home.
    #[must_use]
    pub fn within(mut self, folder: impl Into<PathBuf>) -> Self {
        self.program.folder = folder.into();
        self
    }

    /// Its memory ends here: what goes beyond is refused to it.
    #[must_use]
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        let limited = format!("ulimit -d {} && exec \"$@\"", bytes / 1024);
        let shell = ["sh", "-c", &limited, "sh"].map(str::to_owned);
        self.program.arguments.splice(0..0, shell);
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(self) -> Process {
        let Self { host, mut program } = self;
        let words = || program.arguments.iter().filter(|word| !word.contains(' '));
        let name = words()
            .next()
            .map_or("?", |word| word.rsplit('/').next().unwrap_or(word));
        let number = host.started.fetch_add(1, Ordering::Relaxed);
        let out = host.folder.join("out");
        let label = format!("{number:02}-{name}");
        program.stdout = out.join(format!("{label}.stdout"));
        program.stderr = out.join(format!("{label}.stderr"));
        let (stdout, stderr) = (program.stdout.clone(), program.stderr.clone());
        match host.wiring.ask(&host.name, What::Spawn(program)) {
            Ok((pid, _)) => Process {
                label: format!("{label} on {}", host.name),
                host: host.name.clone(),
                pid,
                stdout,
                stderr,
                wiring: Arc::clone(&host.wiring),
            },
            Err(why) => panic!("starting {label} on {}: {why}", host.name),
        }
    }

    /// Starts it and waits for its end.
    pub fn run(self, within: Duration) -> (Exit, Process) {
        let process = self.spawn();
        (process.exit(within), process)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|broken| broken.into_inner())
}

/// Where cargo puts the programs of the workspace: beside the folder of the test's own program.
pub fn programs_folder() -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own path");
    let folder = own.parent().expect("it lies in a folder");
    let folder = if folder.ends_with("deps") {
        folder.parent().expect("deps lies in a folder")
    } else {
        folder
    };
    folder.to_owned()
}

/// # Panics
/// When it has not been built.
pub fn program(name: &str) -> PathBuf {
    let path = programs_folder().join(name);
    assert!(
        path.exists(),
        "{} is not there; `cargo test --release --workspace` builds it, `-p tests` alone does not",
        path.display()
    );
    path
}

fn need_ip() -> Result<(), Skip> {
    match Command::new("ip").arg("-V").output() {
        Ok(_) => Ok(()),
        Err(why) => Err(Skip(format!(
            "no LAN of namespaces without the program `ip` of iproute2: {why}"
        ))),
    }
}

/// A folder for this LAN, locked as long as it is used. Folders that killed tests left are removed.
fn folder() -> (PathBuf, File) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let above = programs_folder().join("../tmp/lans");
    let result = fs::create_dir_all(&above).and_then(|()| {
        let above = above.canonicalize()?;
        for entry in fs::read_dir(&above)?.flatten() {
            let old = File::open(entry.path().join("lock"));
            if old.is_ok_and(|file| file.try_lock().is_ok()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = above.join(format!("{}-{number}", std::process::id()));
        // What a killed process with the same pid left without a lock.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path)?;
        // Under its name only when it is held, or others would take the folder for one that is left.
        let lock = File::create(path.join("lock.new"))?;
        lock.lock()?;
        fs::rename(path.join("lock.new"), path.join("lock"))?;
        Ok((path, lock))
    });
    result.unwrap_or_else(|why| panic!("{}: {why}", above.display()))
}

fn start_switch(folder: &Path) -> Result<(Child, Arc<Wiring>), Skip> {
    let mut switch = Command::new(program("lan-agent"))
        .arg("switch")
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Ctrl-C in a terminal ends the test; the LAN goes after it.
        .process_group(0)
        .spawn()
        .map_err(|why| Skip(format!("the LAN's agent cannot be started: {why}")))?;
    let words = BufReader::new(switch.stdout.take().expect("piped"));
    let wiring = Arc::new(Wiring {
        orders: Mutex::new(switch.stdin.take()),
        heard: Mutex::default(),
        changed: Condvar::new(),
        next: AtomicU64::new(0),
    });
    let listener = Arc::clone(&wiring);
    thread::spawn(move || listener.listen(words));
    Ok((switch, wiring))
}

/// One of the few LANs that may be up at once.
struct Turn;

static UP: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

impl Turn {
    fn take() -> Self {
        let mut up = lock(&UP.0);
        while *up >= AT_ONCE {
            up = UP.1.wait(up).unwrap_or_else(|broken| broken.into_inner());
        }
        *up += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *lock(&UP.0) -= 1;
        UP.1.notify_one();
    }
}
