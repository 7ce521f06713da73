//! Names of machines.

/// Longest name, in characters.
pub const MAX_NAME: usize = 64;

/// Check a name that the user chose.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    let rule = format!(
        "a name is 1 to {MAX_NAME} letters, digits, '.', '_' and '-', the first a letter or digit, \
         and not a number"
    );
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let fits = (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(known)
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && !name.bytes().all(|byte| byte.is_ascii_digit());
    fits.then_some(()).ok_or(rule)
}
