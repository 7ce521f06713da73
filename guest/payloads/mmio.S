# Addresses without RAM: a load or store there is an exit, KVM_EXIT_MMIO, with its
# address and data. Reads where there is no device, which gives all ones as on real
# buses, then writes the byte that the boot timer at the start of the hole expects.
# Prints "ok" if the load gave the right value.
.include "header.inc"
.code32
.text
	flat_header 32
	mov $0x3f8, %dx
	mov 0xd0000000, %eax
	cmp $-1, %eax
	jne 1f
	movb $123, 0xc0000000
	mov $'o', %al
	out %al, %dx
	mov $'k', %al
	out %al, %dx
	mov $'\n', %al
	out %al, %dx
1:	power_off
