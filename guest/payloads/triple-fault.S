# Load an empty interrupt table and raise an exception: the CPU cannot deliver
# it, nor the double fault that follows, and shuts down (Intel SDM 3A 6.15, #DF).
.include "header.inc"
.code32
.text
	flat_header 32
	lidt empty
	ud2
empty:	.word 0
	.long 0
