pub mod pretrained;
pub mod table;
