//! Asks the agent, and waits for its answer. Used by the plugin, which has nothing else to do meanwhile.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::protocol::{Answer, Reply, Request};

/// Longer than the agent waits for a pod ([`super::server::ADD_WAIT`]).
const ANSWER_WAIT: Duration = Duration::from_secs(15);

/// A reply is at most this long (bytes): what is known of a Service with ten thousand pods is some megabytes.
const REPLY_MAX: u64 = 1 << 28;

/// # Errors
///
/// When there is no agent, or it does not answer in time.
pub fn ask(socket: &Path, request: &Request) -> io::Result<Answer> {
    Ok(fetch(socket, request)?.map(drop))
}

/// # Errors
///
/// When there is no agent, or it does not answer in time.
pub fn fetch(socket: &Path, request: &Request) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_WAIT))?;
    stream.set_write_timeout(Some(ANSWER_WAIT))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream.take(REPLY_MAX)).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the agent has ended, or refuses who asks"));
    }
    Ok(serde_json::from_str(&answer)?)
}
