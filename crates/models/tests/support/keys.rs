//! The digest of a key list that the model table holds.

/// First 16 hex digits of SHA-256 over the `[key, shape, dtype]` list as Python's `json.dumps` writes it: the
/// `keys_sha` of the model table.
pub fn keys_sha<'a>(entries: impl IntoIterator<Item = (&'a str, &'a [usize], &'a str)>) -> String {
    use sha2::{Digest, Sha256};
    let entries: Vec<_> = entries
        .into_iter()
        .map(|(key, shape, dtype)| format!("[\"{key}\", {shape:?}, \"{dtype}\"]"))
        .collect();
    let digest = Sha256::digest(format!("[{}]", entries.join(", ")));
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
