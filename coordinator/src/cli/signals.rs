//! Ctrl-C and SIGTERM.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::failure::{ExitCode, Failure};

/// A flag that the first such signal sets. The second ends the process at once.
///
/// # Errors
/// Resources: the system refuses.
pub fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag unset and sets it after.
        flag::register_conditional_shutdown(
            signal,
            ExitCode::Interrupted as i32,
            Arc::clone(&stop),
        )
        .and_then(|_| flag::register(signal, Arc::clone(&stop)))
        .map_err(|error| Failure::resources(format!("signals cannot be handled: {error}")))?;
    }
    Ok(stop)
}
