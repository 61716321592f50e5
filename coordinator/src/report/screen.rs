//! What a stream leads to: a terminal and how wide it is, or something else.

use std::io::IsTerminal;

const USUAL: usize = 80;

/// Columns of the terminal behind this stream; the usual 80 where there is none.
#[cfg(unix)]
pub fn width(stream: impl std::os::fd::AsFd) -> usize {
    match rustix::termios::tcgetwinsize(stream) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
        _ => USUAL,
    }
}

/// Columns of the terminal behind this stream; the usual 80 where that is not known.
#[cfg(not(unix))]
pub fn width<S>(_stream: S) -> usize {
    USUAL
}

/// Whether this stream is to be coloured where nobody said so: <https://no-color.org>.
pub fn wants_color(stream: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    stream.is_terminal() && !set("NO_COLOR") && !dumb
}
