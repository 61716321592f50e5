//! What stands in the switch and in each host as the first process of its pid namespace.
//!
//! The test starts the switch's agent, and that one starts the hosts', so all are in one pid namespace below the switch's.
//! The switch's agent ends when its stdin does, that is, when the test's process is gone for whatever reason, and the
//! kernel then ends everything in its pid namespace.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    os::{fd::AsRawFd, unix::process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitCode, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use rustix::{
    mount::{
        MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    },
    process::{Pid, Signal, kill_process},
    thread::UnshareFlags,
};

use super::{
    system, wire,
    words::{Answer, Birth, Order, Program, What, Wire},
};

/// The arguments are a verb and, for hosts, how it begins.
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let birth = |text| serde_json::from_str(text).expect("a birth written by the same program");
    let (name, result) = match words[..] {
        ["switch"] => (String::new(), door(&["switch-inside"], true)),
        ["switch-inside"] => (String::new(), switch()),
        ["host", text] => {
            let birth: Birth = birth(text);
            (birth.name, door(&["host-inside", text], false))
        }
        ["host-inside", text] => {
            let birth: Birth = birth(text);
            (birth.name.clone(), host(&birth))
        }
        _ => {
            eprintln!("the tests start this program; nothing is to be seen here");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(&Answer::Refused { host: name, why });
            ExitCode::FAILURE
        }
    }
}

type Told<T> = Result<T, String>;

/// Says what was being done when it failed.
trait Doing<T> {
    fn doing(self, what: &str) -> Told<T>;
}

impl<T, E: std::fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, what: &str) -> Told<T> {
        self.map_err(|why| format!("{what}: {why}"))
    }
}

fn say(answer: &Answer) {
    let mut line = serde_json::to_string(answer).expect("answers can be written");
    line.push('\n');
    let mut out = io::stdout().lock();
    // When nobody listens any more, the end is near anyway.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

/// Makes the namespaces and waits outside the new pid namespace for what it starts inside.
fn door(inside: &[&str], user: bool) -> Told<()> {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let flags = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWPID;
    if user {
        system::unshare(UnshareFlags::NEWUSER).doing("the kernel refuses user namespaces")?;
        fs::write("/proc/self/setgroups", "deny").doing("/proc/self/setgroups")?;
        let map = |id: u32| format!("0 {id} 1");
        fs::write("/proc/self/uid_map", map(uid.as_raw())).doing("/proc/self/uid_map")?;
        fs::write("/proc/self/gid_map", map(gid.as_raw())).doing("/proc/self/gid_map")?;
    }
    system::unshare(flags).doing("no namespaces for mounts, network, names, processes")?;
    let status = Command::new("/proc/self/exe")
        .args(inside)
        .status()
        .doing("starting inside")?;
    if status.success() {
        Ok(())
    } else {
        // It has told why by itself.
        std::process::exit(1);
    }
}

/// Mounts made here stay here; /proc shows this pid namespace.
fn own_mounts() -> Told<()> {
    mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )
    .doing("private mounts")?;
    mount("proc", "/proc", "proc", MountFlags::empty(), None).doing("no /proc of its own")?;
    // Shows this network's interfaces; where it is forbidden, the kernel can still be asked for them.
    let _ = mount("sysfs", "/sys", "sysfs", MountFlags::RDONLY, None);
    Ok(())
}

fn switch() -> Told<()> {
    own_mounts()?;
    quiet("default", "disable_ipv6");
    Agent::default().serve(String::new());
    Ok(())
}

/// Settings that may not exist on this kernel, and are not needed then.
fn quiet(interface: &str, setting: &str) {
    let _ = fs::write(
        format!("/proc/sys/net/ipv6/conf/{interface}/{setting}"),
        "1",
    );
}

fn host(birth: &Birth) -> Told<()> {
    own_mounts()?;
    rustix::system::sethostname(birth.name.as_bytes()).doing("host name")?;
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    for interface in ["default", "all"] {
        // An address counts at once, not after a second of asking around.
        let _ = fs::write(
            format!("/proc/sys/net/ipv6/conf/{interface}/accept_dad"),
            "0",
        );
        if !birth.ipv6 {
            quiet(interface, "disable_ipv6");
        }
    }
    let kept: Vec<(&PathBuf, File)> = birth
        .keep
        .iter()
        .chain([&birth.folder])
        .filter(|path| path.starts_with("/tmp") || path.starts_with("/run"))
        .filter_map(|path| Some((path, File::open(path).ok()?)))
        .collect();
    for file in [
        "hosts",
        "hostname",
        "machine-id",
        "resolv.conf",
        "passwd",
        "group",
    ] {
        let own = birth.folder.join("etc").join(file);
        let shown = Path::new("/etc").join(file);
        if own.exists() && shown.exists() {
            mount_bind(&own, &shown).doing(&format!("/etc/{file}"))?;
        }
    }
    // Nothing of the machine's daemons (D-Bus, Avahi) or of other tests' files is to be met here.
    for folder in ["/run", "/tmp", "/dev/shm"] {
        if Path::new(folder).is_dir() {
            mount("tmpfs", folder, "tmpfs", MountFlags::empty(), None).doing(folder)?;
        }
    }
    for (path, open) in &kept {
        if !path.exists() {
            fs::create_dir_all(path).doing("a folder to show again")?;
            mount_bind_recursive(format!("/proc/self/fd/{}", open.as_raw_fd()), *path)
                .doing(&format!("{} again", path.display()))?;
        }
    }
    drop(kept);
    std::env::set_current_dir("/").doing("/")?;
    Agent::default().serve(birth.name.clone());
    Ok(())
}

#[derive(Default)]
struct Agent {
    hosts: HashMap<String, ChildStdin>,
    wires: HashMap<String, Arc<Mutex<Wire>>>,
}

impl Agent {
    /// Until stdin ends.
    fn serve(mut self, me: String) {
        say(&Answer::Ready { host: me.clone() });
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            let order: Order = serde_json::from_str(&line).expect("orders can be read");
            if order.host != me {
                let Some(host) = self.hosts.get_mut(&order.host) else {
                    say(&Answer::Failed {
                        id: order.id,
                        why: format!("there is no host {}", order.host),
                    });
                    continue;
                };
                if let Err(why) = host.write_all(format!("{line}\n").as_bytes()) {
                    say(&Answer::Failed {
                        id: order.id,
                        why: format!("host {} is gone: {why}", order.host),
                    });
                }
                continue;
            }
            let id = order.id;
            say(&match self.obey(order.what, &me) {
                Ok((pid, text)) => Answer::Done { id, pid, text },
                Err(why) => Answer::Failed { id, why },
            });
        }
    }

    fn obey(&mut self, what: What, me: &str) -> Told<(u32, String)> {
        match what {
            What::Host(birth) => self.begin(&birth).map(|pid| (pid, String::new())),
            What::Ip(batch) => ip(&batch).map(|()| (0, String::new())),
            What::Spawn(program) => {
                let child = spawn(&program)?;
                let pid = child.id();
                watch(child, me.to_owned());
                Ok((pid, String::new()))
            }
            What::Signal { pid, signal } => {
                let pid = Pid::from_raw(pid.cast_signed()).ok_or("no pid")?;
                let signal = Signal::from_named_raw(signal).ok_or("no signal")?;
                kill_process(pid, signal).doing("signal")?;
                Ok((0, String::new()))
            }
            What::Tmpfs { path, bytes } => {
                let size = std::ffi::CString::new(format!("size={bytes}")).doing("size")?;
                fs::create_dir_all(&path).doing("folder")?;
                mount("tmpfs", &path, "tmpfs", MountFlags::empty(), &*size).doing("tmpfs")?;
                Ok((0, String::new()))
            }
            What::PlainFrames { interface } => {
                system::plain_frames(&interface).doing("ethtool")?;
                Ok((0, String::new()))
            }
            What::Wire {
                inside,
                outside,
                like,
            } => {
                if let Some(wire) = self.wires.get(&inside) {
                    *wire.lock().map_err(|_| "the wire is broken")? = like;
                } else {
                    let shared = Arc::new(Mutex::new(like));
                    wire::carry(&inside, &outside, Arc::clone(&shared)).doing("wire")?;
                    self.wires.insert(inside, shared);
                }
                Ok((0, String::new()))
            }
            What::Read(path) => {
                let text = fs::read_to_string(&path).doing(&path.display().to_string())?;
                Ok((0, text))
            }
            What::Write { path, text } => {
                fs::write(&path, text).doing(&path.display().to_string())?;
                Ok((0, String::new()))
            }
        }
    }

    /// A host, whose words are passed on as they come.
    fn begin(&mut self, birth: &Birth) -> Told<u32> {
        let text = serde_json::to_string(birth).doing("birth")?;
        let mut child = Command::new("/proc/self/exe")
            .args(["host", &text])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .doing("starting a host")?;
        let pid = child.id();
        let words = BufReader::new(child.stdout.take().expect("piped"));
        let stdin = child.stdin.take().expect("piped");
        self.hosts.insert(birth.name.clone(), stdin);
        thread::spawn(move || {
            for line in words.lines().map_while(Result::ok) {
                let mut out = io::stdout().lock();
                let _ = writeln!(out, "{line}").and_then(|()| out.flush());
            }
            let _ = child.wait();
        });
        Ok(pid)
    }
}

fn ip(batch: &str) -> Told<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .doing("`ip` (of iproute2) cannot be started")?;
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(batch.as_bytes()).doing("ip")?;
    drop(stdin);
    let output = child.wait_with_output().doing("ip")?;
    if output.status.success() {
        Ok(())
    } else {
        let told = String::from_utf8_lossy(&output.stderr);
        Err(format!("`ip` says {}, to\n{batch}", told.trim()))
    }
}

fn spawn(program: &Program) -> Told<Child> {
    let file = |path: &Path| File::create(path).doing(&path.display().to_string());
    let (name, arguments) = program
        .arguments
        .split_first()
        .ok_or("no program was named")?;
    Command::new(name)
        .args(arguments)
        .env_clear()
        .envs(program.environment.iter().map(|(k, v)| (k, v)))
        .current_dir(&program.folder)
        .stdin(Stdio::null())
        .stdout(file(&program.stdout)?)
        .stderr(file(&program.stderr)?)
        .spawn()
        .doing(name)
}

fn watch(mut child: Child, host: String) {
    thread::spawn(move || {
        let pid = child.id();
        let (code, signal) = match child.wait() {
            Ok(status) => (status.code(), status.signal()),
            Err(_) => (None, None),
        };
        say(&Answer::Exited {
            host,
            pid,
            code,
            signal,
        });
    });
}
