//! The command line of `svdnode`.

use std::{
    io::{BufRead, IsTerminal, Write},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use clap::{ColorChoice, Parser};
use shared::{
    farm::message::PROTOCOL,
    linalg::simd,
    machine,
    net::{
        PORTS, beacon, discovery,
        endpoint::{self, EndpointError},
        identity::{self, Identity, KEY_VARIABLE},
    },
    size::{self, Memory},
    svd::SvdWork,
};

use crate::{
    blocks::BlockStore,
    service::{Offer, Service},
};

/// Exit codes, the same as those of `svdjob`.
mod exit {
    pub const FLAGS: u8 = 2;
    pub const RESOURCES: u8 = 4;
    pub const NO_KEY: u8 = 5;
}

const AFTER: &str = "\
Examples:
  svdnode                         offer this machine to the farm
  svdnode --cores -2              leave two cores free
  svdnode --memory \"8 GiB\" --once  work on one job, then stop

To join a farm, a machine needs the farm's key, once:
  scp WORKSTATION:.config/svdjob/farm.pem ~/.config/svdjob/
(`svdjob farm init` makes the key on the workstation.)

The node listens on the first free of the UDP ports 24740 to 24749, for jobs and for the question who is there. It writes
only below its cache directory, runs no code that is sent to it, and talks only to members of its farm. It works on one
job at a time, and is free again 12 s after the last word of a job's owner.

Ctrl-C or SIGTERM: ends at once when idle, else when the job has ended. A second one: ends at once.

Exit codes:
    0  stopped as it was told
    2  the flags are wrong
    4  memory, disk, a port or a permission is missing
    5  there is no farm key";

/// Offer this machine's cores to a farm.
///
/// Waits for a `svdjob run` of the same farm, works for it, and waits for the next.
#[derive(Parser, Clone, Debug)]
#[command(name = "svdnode", version, after_help = AFTER, max_term_width = 100, args_override_self = true)]
struct Args {
    /// Cores to offer; negative: leave so many free [default: all physical ones that this process may use]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    cores: Option<i32>,

    /// Memory to use: a size or a share of what the machine or container has
    #[arg(long, value_name = "SIZE", default_value = "50 %", value_parser = memory)]
    memory: Memory,

    /// Where blocks are kept from job to job [default: the user's cache directory]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,

    /// Bound of the blocks kept there; what was used least recently goes first
    #[arg(long, value_name = "SIZE", default_value = "64 GiB", value_parser = bytes)]
    cache_max: u64,

    /// Listen on this address only, or on this port, or on both
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = listen)]
    listen: Option<Listen>,

    /// Advertise on this network interface only
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,

    /// Do not advertise by mDNS, nor answer broadcasts: only those who know the address will come
    #[arg(long)]
    no_advertise: bool,

    /// Stop when there was no job for so many seconds
    #[arg(long, value_name = "SECONDS")]
    exit_when_idle: Option<u64>,

    /// Stop after the first job
    #[arg(long)]
    once: bool,

    /// The farm's key [default: $SVDJOB_FARM_KEY, else svdjob/farm.pem in the configuration directory]
    #[arg(long, value_name = "FILE")]
    farm_key: Option<PathBuf>,

    /// Started by svdjob over SSH: the certificate comes on stdin, whose end is the end
    #[arg(long, hide = true)]
    launched: bool,

    /// Log more; twice for still more (RUST_LOG, if set, decides instead)
    #[arg(long, short, action = clap::ArgAction::Count)]
    verbose: u8,

    /// Colours of the log
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Listen {
    ip: Option<IpAddr>,
    port: Option<u16>,
}

fn memory(text: &str) -> Result<Memory, String> {
    size::parse_memory(text)
}

fn bytes(text: &str) -> Result<u64, String> {
    size::parse(text)
}

/// `127.0.0.1`, `127.0.0.1:24745`, `[::1]:24745`, `:24745`.
fn listen(text: &str) -> Result<Listen, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Listen {
            ip: Some(address.ip()),
            port: Some(address.port()),
        });
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Listen {
            ip: Some(ip),
            port: None,
        });
    }
    match text.strip_prefix(':').map(str::parse) {
        Some(Ok(port)) => Ok(Listen {
            ip: None,
            port: Some(port),
        }),
        Some(Err(_)) | None => {
            Err("expected an address such as 192.168.1.7, 192.168.1.7:24745 or :24745".to_owned())
        }
    }
}

/// An end that is not success.
struct End {
    code: u8,
    message: String,
    help: Option<String>,
}

impl End {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            help: None,
        }
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    let args = Args::parse();
    start_logging(&args);
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(end) => {
            say(&format!("error: {}\n", end.message));
            if let Some(help) = end.help {
                say(&format!(" help: {help}\n"));
            }
            ExitCode::from(end.code)
        }
    }
}

fn say(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

fn start_logging(args: &Args) {
    use tracing_subscriber::EnvFilter;
    let stderr = std::io::stderr();
    let color = match args.color {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        EnvFilter::new(match args.verbose {
            0 => "warn,node_agent=info",
            1 => "info,node_agent=debug,shared=debug",
            _ => "debug",
        })
    });
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(color)
        .try_init();
}

fn run(args: &Args) -> Result<(), End> {
    let identity = identity(args)?;
    let offer = offer(args)?;
    let cache = args
        .cache
        .clone()
        .unwrap_or_else(|| machine::cache_directory().join("node"));
    let store = BlockStore::open(&cache, args.cache_max).map_err(|why| {
        End::new(
            exit::RESOURCES,
            format!("could not use {} as cache: {why}", cache.display()),
        )
        .help("name a directory that you may write to with --cache")
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("net")
        .enable_all()
        .build()
        .map_err(|why| End::new(exit::RESOURCES, format!("could not start a thread: {why}")))?;
    let ended = runtime.block_on(serve(args, &identity, offer, Arc::new(store)));
    // What is still on its way to somebody gets a moment; nobody waits for threads that wait for others.
    runtime.shutdown_timeout(Duration::from_millis(500));
    ended
}

fn identity(args: &Args) -> Result<Identity, End> {
    if args.launched {
        return lent();
    }
    match identity::find(args.farm_key.as_deref()) {
        Ok(Some(identity)) => Ok(identity),
        Ok(None) => {
            let place = identity::key_path(None).map_or_else(
                || "the configuration directory".to_owned(),
                |path| path.display().to_string(),
            );
            Err(End::new(
                exit::NO_KEY,
                format!("this machine has no farm key: looked for {place} and at ${KEY_VARIABLE}"),
            )
            .help(
                "bring it from a machine of the farm: scp WORKSTATION:.config/svdjob/farm.pem ~/.config/svdjob/   \
                 (the first one is made by `svdjob farm init`)",
            ))
        }
        Err(why) => Err(End::new(exit::NO_KEY, why.to_string())
            .help("name the right file with --farm-key, or bring the key anew with scp")),
    }
}

/// The certificate that `svdjob` lends over SSH: PEM on stdin, up to a line `END`.
fn lent() -> Result<Identity, End> {
    let mut text = String::new();
    let mut stdin = std::io::stdin().lock();
    loop {
        let mut line = String::new();
        match stdin.read_line(&mut line) {
            Ok(0) => {
                return Err(End::new(
                    exit::NO_KEY,
                    "stdin ended before the certificate did",
                ));
            }
            Ok(_) if line.trim_end() == "END" => break,
            Ok(_) => text.push_str(&line),
            Err(why) => {
                return Err(End::new(
                    exit::NO_KEY,
                    format!("could not read stdin: {why}"),
                ));
            }
        }
        if text.len() > 64 << 10 {
            return Err(End::new(
                exit::NO_KEY,
                "what came on stdin is no certificate",
            ));
        }
    }
    Identity::from_pem(&text).map_err(|why| End::new(exit::NO_KEY, why.to_string()))
}

fn offer(args: &Args) -> Result<Offer, End> {
    let physical = machine::physical_cores() as i64;
    let cores = match args.cores.map(i64::from) {
        None => physical,
        Some(0) => return Err(End::new(exit::FLAGS, "--cores 0: a node needs a core")),
        Some(free) if free < 0 => {
            let left = physical + free;
            if left < 1 {
                return Err(End::new(
                    exit::FLAGS,
                    format!("--cores {free} leaves none of the {physical} cores of this machine"),
                ));
            }
            left
        }
        Some(cores) => cores,
    };
    let memory_bytes = match args.memory {
        Memory::Bytes(bytes) => bytes,
        Memory::Share(percent) => (machine::memory() as f64 * percent / 100.0) as u64,
    };
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut seed = blake3::Hasher::new();
    seed.update(&since.as_nanos().to_le_bytes());
    seed.update(&std::process::id().to_le_bytes());
    seed.update(machine::host().as_bytes());
    let id = u64::from_le_bytes(
        seed.finalize().as_bytes()[..8]
            .try_into()
            .expect("eight bytes"),
    );
    Ok(Offer {
        id,
        cores: u16::try_from(cores).unwrap_or(u16::MAX),
        memory_bytes,
        isa: simd::isa().name(),
        once: args.once,
        idle_max: args.exit_when_idle.map(Duration::from_secs),
    })
}

async fn serve(
    args: &Args,
    identity: &Identity,
    offer: Offer,
    store: Arc<BlockStore>,
) -> Result<(), End> {
    let resources = |why: &dyn std::fmt::Display| End::new(exit::RESOURCES, why.to_string());
    let (ip, port) = args.listen.map_or((None, None), |l| (l.ip, l.port));
    let service: Arc<OnceLock<Arc<Service<SvdWork>>>> = Arc::default();
    let fingerprint = identity.fingerprint();
    let known = Arc::clone(&service);
    // On loopback only this machine can ask.
    let answers = !args.no_advertise || ip.is_some_and(|ip| ip.is_loopback());
    let answer = move |datagram: &[u8]| {
        let service = known.get().filter(|_| answers)?;
        beacon::answer(datagram, &advert(service, fingerprint))
    };
    let endpoint = endpoint::listen(identity, ip, port, Arc::new(answer)).map_err(|why| {
        let end = resources(&why);
        match why {
            EndpointError::Bind { .. } => {
                end.help("another program has it, or the address is none of this machine's")
            }
            EndpointError::AllTaken { .. } => end.help(format!(
                "{} nodes on this machine already? choose a port with --listen :PORT",
                PORTS.count()
            )),
            EndpointError::Io(_) | EndpointError::Key(_) => end,
        }
    })?;
    let address = endpoint.local_addr().map_err(|why| resources(&why))?;
    let node = Service::<SvdWork>::new(offer.clone(), store, endpoint);
    let _ = service.set(Arc::clone(&node));
    let mut advert = advert(&node, fingerprint);
    advert.port = address.port();
    let _advertiser = (!args.no_advertise)
        .then(|| discovery::Advertiser::start(&advert, args.interface.as_deref()))
        .transpose()
        .map_err(|why| resources(&why))?;
    announce(args, &offer, address, fingerprint)?;
    let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
    if args.launched {
        end_with_stdin(Arc::clone(&node));
    }
    let serving = node.serve();
    tokio::pin!(serving);
    let mut asked = false;
    loop {
        tokio::select! {
            () = &mut serving => break,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if asked {
            tracing::warn!("stopped at once");
            break;
        }
        asked = true;
        if node.is_busy() {
            tracing::warn!("will stop when the job has ended; a second signal stops it at once");
        }
        node.drain();
    }
    node.abandon();
    Ok(())
}

fn signal(kind: tokio::signal::unix::SignalKind) -> Result<tokio::signal::unix::Signal, End> {
    tokio::signal::unix::signal(kind)
        .map_err(|why| End::new(exit::RESOURCES, format!("signals cannot be handled: {why}")))
}

fn advert(service: &Service<SvdWork>, fingerprint: identity::Fingerprint) -> beacon::Advert {
    let card = service.card();
    beacon::Advert {
        id: card.id,
        fingerprint,
        protocol: PROTOCOL,
        release: card.release,
        host: card.host,
        cores: card.cores,
        memory_bytes: card.memory_bytes,
        port: service.port(),
        busy: card.busy.is_some(),
    }
}

/// One line, when the node can be called: for people, and for programs that have started it.
fn announce(
    args: &Args,
    offer: &Offer,
    address: SocketAddr,
    fingerprint: identity::Fingerprint,
) -> Result<(), End> {
    let line = if args.launched {
        serde_json::json!({
            "svdnode": 1,
            "port": address.port(),
            "id": format!("{:016x}", offer.id),
            "release": env!("CARGO_PKG_VERSION"),
            "cores": offer.cores,
        })
        .to_string()
    } else {
        let shown = match address.ip() {
            ip if ip.is_unspecified() => format!("UDP port {}", address.port()),
            ip => format!("{}", SocketAddr::new(ip, address.port())),
        };
        format!(
            "svdnode listening on {shown}, {} cores, {}, farm {fingerprint}",
            offer.cores,
            size::show(offer.memory_bytes)
        )
    };
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .or_else(|why| {
            // Somebody who started it wants to know; nobody else has to listen.
            if args.launched {
                Err(End::new(
                    exit::RESOURCES,
                    format!("could not write to stdout: {why}"),
                ))
            } else {
                Ok(())
            }
        })
}

/// Whoever has started it holds its stdin open. When that ends, however it ends, so does the node.
fn end_with_stdin(service: Arc<Service<SvdWork>>) {
    let _ = std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            let mut stdin = std::io::stdin().lock();
            let mut line = String::new();
            while stdin.read_line(&mut line).is_ok_and(|n| n > 0) {
                line.clear();
            }
            tracing::info!("whoever started this node is gone");
            service.abandon();
            service.drain();
        });
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn addresses_to_listen_on_are_read() {
        let all = |ip: &str, port| Listen {
            ip: (!ip.is_empty()).then(|| ip.parse().unwrap()),
            port,
        };
        assert_eq!(listen("127.0.0.1"), Ok(all("127.0.0.1", None)));
        assert_eq!(listen("127.0.0.1:80"), Ok(all("127.0.0.1", Some(80))));
        assert_eq!(listen("[::1]:80"), Ok(all("::1", Some(80))));
        assert_eq!(listen(":80"), Ok(all("", Some(80))));
        assert!(listen("here").is_err() && listen(":many").is_err());
    }
}
