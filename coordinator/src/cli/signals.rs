//! Ctrl-C and SIGTERM.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::{ExitCode, Failure};

/// Signals so close to the first are the same wish: `timeout`, shells and service managers send theirs to the process
/// and to its group.
const SAME_WISH: Duration = Duration::from_secs(1);

/// A flag that the first such signal sets. One that comes later, from somebody who has waited, ends the process at once.
///
/// # Errors
/// Resources: the system refuses.
pub fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let refused = |error| Failure::resources(format!("signals cannot be handled: {error}"));
    let stop = Arc::new(AtomicBool::new(false));
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(refused)?;
    let flag = Arc::clone(&stop);
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut first: Option<Instant> = None;
            for _ in signals.forever() {
                match first {
                    None => {
                        first = Some(Instant::now());
                        flag.store(true, Ordering::Relaxed);
                    }
                    Some(at) if at.elapsed() < SAME_WISH => {}
                    Some(_) => process::exit(ExitCode::Interrupted as i32),
                }
            }
        })
        .map_err(refused)?;
    Ok(stop)
}
