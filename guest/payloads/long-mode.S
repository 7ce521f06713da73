# 64-bit: hull entered us in long mode with the first 4 GiB identity-mapped. A
# store above 4 GiB would fault; one just below the local APIC's page is MMIO.
# Prints the top half of a register that only 64-bit code has, then powers off.
.include "header.inc"
.code64
.text
	flat_header 64
	movabs $0x0a6b6f0000000000, %rbx	# "ok\n" in the upper bytes
	shr $40, %rbx
	mov $0x3f8, %dx
1:	mov %bl, %al
	out %al, %dx
	shr $8, %rbx
	jnz 1b
	power_off
