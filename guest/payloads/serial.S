# A driver of a serial port: the 16550A at COM1 (PC16550D data sheet, 8), with polling and
# with interrupts. Real mode, because its interrupt table is the simplest: 4 bytes a vector,
# from address 0. If no interrupt arrives, it prints a message after a while.
.include "header.inc"
	.equ DATA, 0x3f8		# write: transmit; with DLAB: low byte of the divisor
	.equ IER, 0x3f9			# which interrupts are enabled; with DLAB: high byte
	.equ IIR, 0x3fa			# read: the cause; write: FIFO control
	.equ LCR, 0x3fb			# bits a character; bit 7: DLAB
	.equ MCR, 0x3fc			# modem lines; OUT2 enables the interrupt line
	.equ LSR, 0x3fd			# bit 5: the transmitter takes another byte
	.equ PIC, 0x20			# the interrupt controller: commands, and data at 0x21

.macro put value, port
	mov $\value, %al
	mov $\port, %dx
	out %al, %dx
.endm

.code16
.text
	flat_header 16
	cli
	cld
	put 0x80, LCR			# DLAB
	put 1, DATA			# 115200 bit/s divided by 1
	put 0, IER
	put 0x03, LCR			# 8 bits, no parity, one stop bit; DLAB off
	put 0x07, IIR			# FIFOs on and empty
	put 0x0b, MCR			# DTR, RTS, OUT2

	mov $polled, %si
	call print

# The interrupt: line 4 of the controller, which is told to send vectors 8 to 15.
	put 0x11, PIC			# ICW1: initialize, ICW4 follows
	put 0x08, PIC + 1		# ICW2: the first vector
	put 0x04, PIC + 1		# ICW3: the second controller is at line 2
	put 0x01, PIC + 1		# ICW4: 8086 mode
	put 0xef, PIC + 1		# mask all lines but 4
	movw $interrupt, 4 * 12		# vector 8 + 4: offset
	movw $0, 4 * 12 + 2		# and segment of its handler

	mov $driven, %si		# what the handler sends
	sti
	put 0x02, IER			# "transmitter empty" is enabled, and it is empty now
	mov $20000, %cx
	mov $LSR, %dx
1:	in %dx, %al			# an exit: long enough for an interrupt to arrive
	cmpb $0, done
	jne 2f
	loop 1b
	cli
	put 0, IER
	mov $none, %si
	call print
2:	power_off

# One byte an interrupt. Reading IIR acknowledges it at the chip, EOI at the controller.
interrupt:
	push %ax
	push %dx
	mov $IIR, %dx
	in %dx, %al
	lodsb
	test %al, %al
	jz 3f
	mov $DATA, %dx
	out %al, %dx
	jmp 4f
3:	put 0, IER
	movb $1, done
4:	put 0x20, PIC			# EOI
	pop %dx
	pop %ax
	iret

# Polling: before each byte, check that it may be sent.
print:
	mov $LSR, %dx
5:	in %dx, %al
	test $0x20, %al
	jz 5b
	lodsb
	test %al, %al
	jz 6f
	mov $DATA, %dx
	out %al, %dx
	jmp print
6:	ret

polled:	.asciz "sent by polling\n"
driven:	.asciz "sent by interrupts\n"
none:	.asciz "no interrupt came\n"
done:	.byte 0
