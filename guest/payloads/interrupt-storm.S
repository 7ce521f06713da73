# Interrupts from itself, from COM1, whose interrupt is switched on and off, and from all lines; meanwhile
# it starts the other CPUs again and again. Then it prints p, and has the local APIC's timer and the PIT
# interrupt at their highest rates for ever.
.include "header.inc"
	.equ IDT, 0x10000
	.equ APIC, 0xfee00000
	.equ IOAPIC, 0xfec00000
	.equ AP, 0x20000		# where other CPUs begin

.macro out_byte value, port
	mov $\value, %al
	mov $\port, %dx
	out %al, %dx
.endm

.code32
.text
	flat_header 32
	mov $0x7f000, %esp
	mov $IDT, %edi			# a gate for each vector (Intel SDM 3A, 6.11)
	mov $256, %ecx
	mov $interrupt, %eax
1:	mov %ax, (%edi)
	mov %cs, 2(%edi)
	movw $0x8e00, 4(%edi)
	movw $0, 6(%edi)
	add $8, %edi
	loop 1b
	lidt idt_pointer
	movl $0xfdebf4, AP		# hlt; jmp AP
	movl $AP << 12, 8		# its NMI is there, too

	movl $0x1ff, APIC + 0xf0	# software enable
	xor %ecx, %ecx			# each pin: level-triggered, its own vector, to CPU 0
2:	lea 0x10(%ecx,%ecx), %eax
	mov %eax, IOAPIC
	lea 0x8050(%ecx), %edx
	mov %edx, IOAPIC + 0x10
	inc %eax
	mov %eax, IOAPIC
	movl $0, IOAPIC + 0x10
	inc %ecx
	cmp $24, %ecx
	jne 2b
	out_byte 0x0b, 0x3fc		# OUT2: COM1 has its line
	sti

	mov $3000, %ecx
3:	out_byte 0, 0x3f9
	out_byte 2, 0x3f9		# an interrupt when it may send: always
	mov %ecx, %eax
	and $0xff, %eax
	or $0x44010, %eax		# to itself
	mov %eax, APIC + 0x300
	test $0xf, %ecx
	jnz 4f
	movl $0xc4500, APIC + 0x300	# to all others: INIT, STARTUP, STARTUP, NMI
	movl $0xc4600 | AP >> 12, APIC + 0x300
	movl $0xc4600 | AP >> 12, APIC + 0x300
	movl $0xc4400, APIC + 0x300
4:	loop 3b
	out_byte 'p', 0x3f8

	movl $0xb, APIC + 0x3e0		# divide by 1
	movl $0x20040, APIC + 0x320	# periodic, vector 0x40
	movl $1, APIC + 0x380
	out_byte 0x34, 0x43		# the PIT's counter 0, every second tick
	out_byte 2, 0x40
	out_byte 0, 0x40
5:	hlt
	jmp 5b

interrupt:
	movl $0, APIC + 0xb0		# EOI
	push %eax			# in place of IRET, which not every KVM can emulate: the flags are left
	mov 4(%esp), %eax		# below the return address, without IF
	xchg %eax, 12(%esp)
	and $~0x200, %eax
	mov %eax, 8(%esp)
	pop %eax
	add $4, %esp
	popf
	sti				# not before RET
	ret

idt_pointer:
	.word 8 * 256 - 1
	.long IDT
