//! Just enough of Redis's protocol to know where a request begins and what it is.

use anyhow::{Context as _, anyhow};
use redis_protocol::resp2::decode::decode_range;
use redis_protocol::resp2::types::RangeFrame;

/// Takes the first whole frame off the buffer; none while it is not all there.
pub fn take_frame(buffer: &mut Vec<u8>) -> anyhow::Result<Option<Vec<u8>>> {
    let length = match decode_range(buffer) {
        Ok(Some((_, length))) => length,
        Ok(None) => return Ok(None),
        Err(error) => return Err(anyhow!("this is not Redis's protocol: {error}")),
    };
    let rest = buffer.split_off(length);
    Ok(Some(std::mem::replace(buffer, rest)))
}

/// What a request asks for: the command, or for a call of a function the function, without the name
/// of its library's version.
pub fn name_of(request: &[u8]) -> anyhow::Result<String> {
    let (frame, _) = decode_range(request).ok().flatten().context("a request is cut off")?;
    let RangeFrame::Array(words) = frame else { return Err(anyhow!("a request is no array")) };
    let word = |at: usize| match words.get(at) {
        Some(RangeFrame::BulkString((from, to))) => {
            Some(String::from_utf8_lossy(&request[*from..*to]).into_owned())
        }
        _ => None,
    };
    let command = word(0).context("a request without a command")?.to_ascii_uppercase();
    match word(1) {
        Some(function) if command.starts_with("FCALL") => Ok(plain(&function).to_owned()),
        _ => Ok(command),
    }
}

/// `rz1_0badcafe_claim` is `claim`.
fn plain(function: &str) -> &str {
    let is_version = |part: &str| part.len() == 8 && part.bytes().all(|b| b.is_ascii_hexdigit());
    match function.splitn(3, '_').collect::<Vec<_>>()[..] {
        [_, version, name] if is_version(version) => name,
        _ => function,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_off_one_by_one() {
        let mut buffer = b"*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$1\r\nk".to_vec();
        assert_eq!(take_frame(&mut buffer).unwrap().unwrap(), b"*1\r\n$4\r\nPING\r\n");
        assert_eq!(take_frame(&mut buffer).unwrap(), None);
        buffer.extend(b"\r\n");
        let get = take_frame(&mut buffer).unwrap().unwrap();
        assert_eq!((name_of(&get).unwrap().as_str(), buffer.len()), ("GET", 0));
    }

    #[test]
    fn a_function_is_known_without_its_version() {
        let call = b"*3\r\n$5\r\nfcall\r\n$23\r\nrz1_0badcafe_finish_all\r\n$1\r\n0\r\n";
        assert_eq!(name_of(call).unwrap(), "finish_all");
        assert_eq!(plain("give_up_all"), "give_up_all");
    }
}
